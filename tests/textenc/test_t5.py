"""T5 against the original implementation, and on its own."""

import json

import pytest
import torch

from sd35.verify.rounding import rounding_reach
from textenc import T5, T5Config
from textenc.t5 import relative_bucket


def relative(value, expected):
    return ((value - expected).abs().max() / expected.abs().max()).item()


def load(golden, dtype):
    with torch.device("meta"):
        t5 = T5(T5Config.from_shapes({name: tensor.shape for name, tensor in golden.weights.items()}))
    t5.load_state_dict({name: tensor.to(dtype) for name, tensor in golden.weights.items()}, assign=True)
    return t5.requires_grad_(False)


@pytest.mark.parametrize("length", ["77", "long"])
def test_float64_equals_the_reference(golden, length):
    reference = golden("t5_like")
    out = load(reference, torch.float64)(reference.tensors[f"in/input_ids_{length}"])
    assert relative(out, reference.tensors[f"out64/last_hidden_state_{length}"]) < 1e-12


@pytest.mark.parametrize("length", ["77", "long"])
def test_float32_is_as_exact_as_its_sums(golden, length):
    """Both are: this encoder, and the original, which is 1.7e-6 from its float64 run, 5.2e-6 at 300 tokens.

    How tensors lie in memory alone makes ours 1.4e-6 or 1.7e-6, 3.4e-6 or 5.2e-6. Every block by itself is
    compared in tests/parity.
    """
    reference = golden("t5_like")
    ids, last = reference.tensors[f"in/input_ids_{length}"], f"last_hidden_state_{length}"
    exact, wide = reference.tensors[f"out64/{last}"], load(reference, torch.float64)
    limit = rounding_reach(lambda: {"last": wide(ids)}, draws=4)["last"]
    assert relative(reference.tensors[f"out/{last}"].double(), exact) < limit < 2e-5
    assert relative(load(reference, torch.float32)(ids).double(), exact) < limit


def test_every_relative_bucket_equals_the_reference(golden):
    tensors = golden("t5_like").tensors
    assert torch.equal(
        relative_bucket(tensors["act/relative_position"], num_buckets=32), tensors["act/relative_bucket"]
    )


def test_relative_buckets():
    distance = torch.tensor([0, -1, 1, -7, -8, 7, 8, -90, -91, -400, 91, 400])
    assert relative_bucket(distance, num_buckets=32).tolist() == [0, 1, 17, 7, 8, 23, 24, 14, 15, 15, 31, 31]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 8e-2), (torch.float16, 1e-2)])
def test_half_precision_stays_near(golden, dtype, limit):
    reference = golden("t5_like")
    out = load(reference, dtype)(reference.tensors["in/input_ids_77"])
    assert out.dtype == dtype
    assert relative(out.float(), reference.tensors["out/last_hidden_state_77"]) < limit


def test_float16_does_not_overflow(t5):
    """A stream and a feed-forward product beyond 65504, as in T5-XXL."""
    ids = torch.tensor([[3, 4, 5, 1]])
    with torch.no_grad():
        t5.shared.weight.mul_(500)
        for block in t5.encoder.block:
            for name in ("wi_0", "wi_1"):
                getattr(block.layer[1].DenseReluDense, name).weight.mul_(400)
    largest = []
    mlp = t5.encoder.block[0].layer[1].DenseReluDense
    mlp.wo.register_forward_pre_hook(lambda _module, args: largest.append(args[0].abs().max()))
    t5.encoder.block[1].register_forward_hook(lambda _module, _args, out: largest.append(out.abs().max()))
    exact = t5.double()(ids)
    assert min(largest) > 65504
    half = t5.half()(ids)
    assert half.isfinite().all()
    assert relative(half.double(), exact) < 2e-2


@pytest.mark.parametrize("names", [["shared"], ["encoder.embed_tokens"], ["shared", "encoder.embed_tokens"]])
def test_the_token_table_is_read_under_either_name(t5, names):
    state = t5.state_dict()
    table = state.pop("shared.weight")
    shapes = {name: tensor.shape for name, tensor in state.items()}
    config = T5Config.from_shapes(shapes | {f"{name}.weight": table.shape for name in names})
    assert config == t5.config
    other = T5(config)
    other.load_state_dict(state | {f"{name}.weight": table for name in names})
    assert torch.equal(other.shared.weight, table)


def test_a_missing_token_table_is_reported(t5):
    state = t5.state_dict()
    del state["shared.weight"]
    with pytest.raises(RuntimeError, match=r"shared\.weight"):
        t5.load_state_dict(state)


def test_meta_module_of_the_official_file_has_its_keys(shared_reference):
    manifest = json.loads(
        (shared_reference / "manifests/text_encoders_t5xxl_fp16.safetensors.json").read_text()
    )
    shapes = {key: tuple(shape) for key, (shape, _) in manifest["tensors"].items()}
    config = T5Config.from_shapes(shapes)
    assert config == T5Config(32128, 4096, 24, 64, 64, 10240, 32)
    with torch.device("meta"):
        built = {key: tuple(tensor.shape) for key, tensor in T5(config).state_dict().items()}
    alias = "encoder.embed_tokens.weight"
    assert built | {alias: built["shared.weight"]} == shapes


def test_pads_are_attended(t5):
    ids = torch.tensor([[3, 4, 1]])
    padded = torch.tensor([[3, 4, 1, 0, 0]])
    assert relative(t5(padded)[:, :3], t5(ids)) > 1e-3


def test_initialize_repeats_itself_and_trains(t5):
    weights = {name: tensor.clone() for name, tensor in t5.state_dict().items()}
    t5.initialize(torch.Generator().manual_seed(9))
    assert not torch.equal(t5.shared.weight, weights["shared.weight"])
    t5.initialize(torch.Generator().manual_seed(3))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in t5.state_dict().items())

    t5.requires_grad_(True)
    t5(torch.tensor([[3, 4, 1]])).square().sum().backward()
    assert not [name for name, p in t5.named_parameters() if p.grad is None]


def test_what_does_not_fit_is_refused(t5):
    with pytest.raises(ValueError, match="40 is outside this encoder's vocabulary of 40"):
        t5(torch.tensor([[40]]))
    with pytest.raises(ValueError, match=r"shared\.weight is missing"):
        T5Config.from_shapes({})
    shapes = {name: tuple(tensor.shape) for name, tensor in t5.state_dict().items()}
    shapes["encoder.block.0.layer.0.SelfAttention.q.weight"] = (17, 24)
    with pytest.raises(ValueError, match="does not divide into 2 heads"):
        T5Config.from_shapes(shapes)
