"""CLIP against the original implementation, and on its own."""

import json

import pytest
import torch

from textenc import CLIP, CLIPConfig

# Relative to the largest magnitude; the float64 figures need the float64 weights' exact upcast.
LIMITS = {torch.float32: 2e-6, torch.float64: 1e-12}
CASES = [(name, dtype) for name in ("clip_l_like", "clip_g_like") for dtype in LIMITS]


def relative(value, expected):
    return ((value - expected).abs().max() / expected.abs().max()).item()


def load(golden, dtype):
    shapes = {name: tensor.shape for name, tensor in golden.weights.items()}
    activation, num_heads = golden.config["hidden_act"], golden.config["num_attention_heads"]
    with torch.device("meta"):
        clip = CLIP(CLIPConfig.from_shapes(shapes, activation=activation, num_heads=num_heads))
    clip.load_state_dict({name: tensor.to(dtype) for name, tensor in golden.weights.items()}, assign=True)
    return clip.requires_grad_(False)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_outputs_equal_the_reference(golden, name, dtype):
    reference = golden(name)
    clip = load(reference, dtype)
    out = clip(reference.tensors["in/input_ids"])
    prefix = "out64" if dtype == torch.float64 else "out"
    pooled = "pooled_unprojected" if clip.config.projection_dim is None else "pooled_projected"
    expected = reference.tensors[f"{prefix}/penultimate_no_final_norm"]
    assert relative(out.penultimate, expected) < LIMITS[dtype]
    assert relative(out.pooled, reference.tensors[f"{prefix}/{pooled}"]) < LIMITS[dtype]


@pytest.mark.parametrize("name", ["clip_l_like", "clip_g_like"])
def test_every_layer_equals_the_reference(golden, name):
    reference = golden(name)
    clip = load(reference, torch.float32)
    seen = {}
    layers = clip.text_model.encoder.layers
    for key, module in [
        ("embeddings", clip.text_model.embeddings),
        *((f"layer{i}", m) for i, m in enumerate(layers)),
    ]:
        module.register_forward_hook(lambda _module, _args, out, key=key: seen.update({key: out}))
    last = clip(reference.tensors["in/input_ids"]).last
    assert len(seen) == reference.config["num_hidden_layers"] + 1
    for key, value in seen.items():
        assert relative(value, reference.tensors[f"act/{key}"]) < 2e-6, key
    assert relative(last, reference.tensors["out/last_hidden_state_normed"]) < 2e-6


@pytest.mark.parametrize(("name", "dtype", "limit"), [
    ("clip_l_like", torch.bfloat16, 2e-2), ("clip_l_like", torch.float16, 2e-3),
    ("clip_g_like", torch.bfloat16, 2e-2), ("clip_g_like", torch.float16, 2e-3),
])  # fmt: skip
def test_half_precision_stays_near(golden, name, dtype, limit):
    reference = golden(name)
    out = load(reference, dtype)(reference.tensors["in/input_ids"])
    assert out.penultimate.dtype == dtype
    assert relative(out.penultimate.float(), reference.tensors["out/penultimate_no_final_norm"]) < limit


def test_the_activation_matters(golden):
    reference = golden("clip_l_like")
    reference.config["hidden_act"] = "gelu"
    out = load(reference, torch.float32)(reference.tensors["in/input_ids"])
    assert 5e-3 < relative(out.penultimate, reference.tensors["out/penultimate_no_final_norm"]) < 2e-2


def test_a_shorter_sequence_gives_the_same_tokens(clip_g, tokenizer_g):
    ids = torch.tensor([tokenizer_g("a red cat").ids])
    long, short = clip_g(ids), clip_g(ids[:, :6])
    torch.testing.assert_close(short.penultimate, long.penultimate[:, :6], rtol=0, atol=1e-5)
    torch.testing.assert_close(short.pooled, long.pooled, rtol=0, atol=1e-5)


def test_pooled_is_read_at_the_first_end_of_text(clip_l, tokenizer_l):
    ids = torch.tensor([tokenizer_l("cat").ids])  # start, cat, end, pads that are ends too
    out = clip_l(ids)
    assert ids[0, 2] == tokenizer_l.end.id
    assert torch.equal(out.pooled, out.last[:, 2])


def test_shapes_round_trip_through_the_config():
    config = CLIPConfig(50, 77, 128, 3, 2, 256, 96, "gelu")
    shapes = {name: tensor.shape for name, tensor in CLIP(config).state_dict().items()}
    assert CLIPConfig.from_shapes(shapes, activation="gelu") == config


def test_meta_module_of_the_official_file_has_its_keys(shared_reference):
    for name, activation in (("clip_l", "quick_gelu"), ("clip_g", "gelu")):
        manifest = json.loads(
            (shared_reference / f"manifests/text_encoders_{name}.safetensors.json").read_text()
        )
        shapes = {key: tuple(shape) for key, (shape, _) in manifest["tensors"].items()}
        config = CLIPConfig.from_shapes(shapes, activation=activation)
        with torch.device("meta"):
            built = {key: tuple(tensor.shape) for key, tensor in CLIP(config).state_dict().items()}
        assert built == shapes
        assert config.num_heads == manifest["config"]["num_attention_heads"]


def test_initialize_repeats_itself_and_trains(clip_g):
    weights = {name: tensor.clone() for name, tensor in clip_g.state_dict().items()}
    clip_g.initialize(torch.Generator().manual_seed(9))
    assert not torch.equal(clip_g.text_projection.weight, weights["text_projection.weight"])
    clip_g.initialize(torch.Generator().manual_seed(2))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in clip_g.state_dict().items())

    clip_g.requires_grad_(True)
    out = clip_g(torch.tensor([[5, 6, clip_g.config.vocab_size - 1]]))
    (out.penultimate.sum() + out.pooled.square().sum()).backward()
    missing = [name for name, p in clip_g.named_parameters() if p.grad is None]
    assert not missing


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 3), "int64 or int32, got torch.float32"),
        (torch.zeros(3, dtype=torch.int64), r"\(batch, length\)"),
        (torch.zeros(1, 0, dtype=torch.int64), "not empty"),
        (torch.zeros(1, 78, dtype=torch.int64), "78 tokens are too many"),
        (torch.tensor([[0, 10**6]]), "1000000 is outside this encoder's vocabulary"),
        (torch.tensor([[-1, 3]]), "-1 is outside"),
    ],
)
def test_ids_that_do_not_fit_are_refused(clip_l, ids, message):
    with pytest.raises(ValueError, match=message):
        clip_l(ids)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"token_embedding\.weight is missing"):
        CLIPConfig.from_shapes({}, activation="gelu")
    with pytest.raises(ValueError, match="should have 2 dimensions"):
        CLIPConfig.from_shapes({"text_model.embeddings.token_embedding.weight": (4,)}, activation="gelu")
    with pytest.raises(ValueError, match="does not divide into 3 heads"):
        CLIPConfig(50, 77, 128, 3, 3, 256, None, "gelu")
    with pytest.raises(ValueError, match="activation must be"):
        CLIPConfig(50, 77, 128, 3, 2, 256, None, "relu")  # pyright: ignore[reportArgumentType]
