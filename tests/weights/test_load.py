"""The same weights come out of every layout, mapped where they can be, and nothing else gets in."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import weights
from weights import MissingComponent, SourceError, ValuesError

LOAD = {
    "mmdit": weights.load_mmdit,
    "vae": weights.load_vae,
    "clip_l": lambda source, **options: weights.load_clip(source, part="clip_l", **options),
    "clip_g": lambda source, **options: weights.load_clip(source, part="clip_g", **options),
    "t5": weights.load_t5,
}


def assert_loaded(module, state):
    assert module.state_dict().keys() == state.keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("layout", ["official", "diffusers", "all_in_one"])
@pytest.mark.parametrize("part", LOAD)
def test_every_layout_gives_the_same_weights(request, parts, layout, part):
    assert_loaded(LOAD[part](request.getfixturevalue(layout)), parts[part])


@pytest.mark.parametrize("part", LOAD)
def test_a_part_loads_from_a_file_of_its_own(tmp_path, writers, parts, part):
    path = writers["write"](tmp_path / f"{part}.safetensors", parts[part])
    assert_loaded(LOAD[part](path), parts[part])
    assert_loaded(LOAD[part](str(path)), parts[part])


@pytest.mark.parametrize("folder", ["transformer", "vae", "text_encoder_2"])
def test_a_diffusers_component_folder_is_a_source(diffusers, parts, folder):
    part = {"transformer": "mmdit", "vae": "vae", "text_encoder_2": "clip_g"}[folder]
    assert_loaded(LOAD[part](diffusers / folder), parts[part])


def test_an_index_is_a_source(diffusers, parts):
    index = diffusers / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    assert_loaded(weights.load_mmdit(index), parts["mmdit"])


@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_controlnet(tmp_path, writers, parts, layout):
    state = dict(parts["controlnet"])
    # The official files hold these and never use them.
    extra = {
        "context_embedder.weight": torch.ones(128, 4),
        "pos_embed.proj.weight": torch.ones(128, 16, 2, 2),
    }
    if layout == "diffusers":
        del state["control_type"]
        writers["write"](
            tmp_path / "diffusion_pytorch_model.safetensors", writers["to_diffusers"]("controlnet", state)
        )
    else:
        writers["write"](tmp_path / "sd3.5_large_controlnet_canny.safetensors", state | extra)
    net = weights.load_controlnet(tmp_path, dtype=torch.bfloat16)
    loaded = net.state_dict()
    assert loaded.keys() == state.keys()
    if layout == "official":
        assert loaded["control_type"].dtype == torch.int32
        assert loaded["control_type"].tolist() == [1]
    block = "transformer_blocks.1.attn.qkv.weight"
    assert torch.equal(loaded[block], state[block].bfloat16())


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_the_files_unless_another_is_asked_for(tmp_path, writers, parts, stored):
    state = {name: tensor.to(stored) for name, tensor in parts["vae"].items()}
    path = writers["write"](tmp_path / "vae.safetensors", state)
    assert_loaded(weights.load_vae(path), state)
    cast = {name: tensor.float() for name, tensor in state.items()}
    assert_loaded(weights.load_vae(path, dtype=torch.float32), cast)


@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_is_cast_up(tmp_path, writers, parts, fp8):
    state = {name: tensor.to(fp8) for name, tensor in parts["t5"].items()}
    path = writers["write"](tmp_path / "t5xxl_fp8.safetensors", state)
    cast = {name: tensor.bfloat16() for name, tensor in state.items()}
    assert_loaded(weights.load_t5(path, unpack=True), cast)
    whole = weights.load_t5(path, dtype=torch.float32, unpack=True)
    assert_loaded(whole, {name: tensor.float() for name, tensor in state.items()})
    packed, ids = weights.load_t5(path, dtype=torch.float32), torch.arange(7)[None]
    assert torch.equal(packed(ids), whole(ids))
    layer = packed.get_submodule("encoder.block.1.layer.1.DenseReluDense.wo")
    assert layer.packed.nbytes == layer.weight.numel()


def test_mixed_dtypes_load_as_the_one_of_most_bytes(tmp_path, writers, parts):
    state = {name: tensor.bfloat16() if tensor.ndim > 1 else tensor for name, tensor in parts["vae"].items()}
    module = weights.load_vae(writers["write"](tmp_path / "vae.safetensors", state))
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.bfloat16}


def test_full_precision_t5_wins_over_fp8(tmp_path, writers, parts):
    fp8 = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in parts["t5"].items()}
    writers["write"](tmp_path / "text_encoders" / "t5xxl_fp16.safetensors", parts["t5"])
    writers["write"](tmp_path / "text_encoders" / "t5xxl_fp8_e4m3fn.safetensors", fp8)
    assert_loaded(weights.load_t5(tmp_path), parts["t5"])


def test_t5_with_only_the_other_name_of_its_table(tmp_path, writers, parts):
    state = dict(parts["t5"])
    state["encoder.embed_tokens.weight"] = state.pop("shared.weight")
    assert_loaded(weights.load_t5(writers["write"](tmp_path / "t5.safetensors", state)), parts["t5"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused(tmp_path, writers, parts, value, dtype):
    state = {name: tensor.to(dtype, copy=True) for name, tensor in parts["vae"].items()}
    name = "decoder.mid.block_1.conv1.weight"
    state[name].view(-1)[12345] = value
    path = writers["write"](tmp_path / "vae.safetensors", state)
    with pytest.raises(ValuesError, match=rf"NaN or infinite weights in 1 of .*{name}"):
        weights.load_vae(path)


def test_weights_that_overflow_in_the_dtype_asked_for_are_refused(tmp_path, writers, parts):
    state = parts["vae"] | {"decoder.conv_out.bias": torch.tensor([1.0, 7e4, 0.0])}
    path = writers["write"](tmp_path / "vae.safetensors", state)
    with pytest.raises(ValuesError, match=r"beyond 65504.*decoder\.conv_out\.bias.*bfloat16 or float32"):
        weights.load_vae(path, dtype=torch.float16)
    assert_loaded(weights.load_vae(path), state)


def test_clip_l_projection_is_never_used(tmp_path, writers, parts):
    eye = parts["clip_l"] | {"text_projection.weight": torch.eye(64)}
    assert_loaded(weights.load_clip(writers["write"](tmp_path / "clip_l.safetensors", eye)), parts["clip_l"])
    other = parts["clip_l"] | {"text_projection.weight": torch.eye(64) * 1.5}
    path = writers["write"](tmp_path / "other" / "clip_l.safetensors", other)
    with pytest.warns(UserWarning, match=r"not the identity \(it differs by 0\.5\) and is not used"):
        module = weights.load_clip(path)
    assert_loaded(module, parts["clip_l"])


@pytest.mark.parametrize(
    ("name", "config", "part"),
    [
        ("clip_l.safetensors", None, "clip_l"),
        ("clip_g.safetensors", None, "clip_g"),
        ("text_encoder/model.safetensors", None, "clip_l"),
        ("text_encoder_2/model.safetensors", None, "clip_g"),
        ("clip_g.safetensors", '{"hidden_act": "quick_gelu"}', "clip_l"),
        ("clip_l.safetensors", '{"hidden_act": "gelu"}', "clip_g"),
        ("x/model.safetensors", None, "clip_l"),  # no projection
    ],
)
def test_clip_is_told_by_config_then_name_then_projection(tmp_path, writers, parts, name, config, part):
    path = writers["write"](tmp_path / name, parts["clip_l"])
    if config:
        (path.parent / "config.json").write_text(config)
    clip = weights.load_clip(path)
    assert clip.config.activation == {"clip_l": "quick_gelu", "clip_g": "gelu"}[part]


def test_heads_come_from_the_config_beside(tmp_path, writers, parts):
    path = writers["write"](tmp_path / "clip_g.safetensors", parts["clip_g"])
    assert weights.load_clip(path).config.num_heads == 2  # 128 / 64
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    assert weights.load_clip(path).config.num_heads == 4


def test_two_clips_must_be_told_apart(official):
    with pytest.raises(SourceError, match="holds both CLIP encoders: say part='clip_l'"):
        weights.load_clip(official)
    with pytest.raises(SourceError, match="part is 'clip_l' or 'clip_g', not 'clip_h'"):
        weights.load_clip(official, part="clip_h")


def test_missing_component_says_what_is_there_and_what_to_fetch(tmp_path, writers, parts):
    path = writers["write"](tmp_path / "vae.safetensors", parts["vae"])
    with pytest.raises(MissingComponent, match=r"no text encoder T5 \(found: autoencoder\).*t5xxl_fp16"):
        weights.load_t5(path)


def test_parameters_lie_in_the_mapped_file(official):
    module = weights.load_mmdit(official)
    mapped = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("sd3.5_small.safetensors")
    ]
    for name, tensor in module.state_dict().items():
        assert any(start <= tensor.data_ptr() < end for start, end in mapped), f"{name} was copied"


def test_loading_costs_no_second_copy(tmp_path):
    """A 128 MB file, loaded in a fresh process: private memory grows by a small part of it."""
    program = """
import sys, re, torch
from safetensors.torch import save_file
import weights
from mmdit import MMDiT, MMDiTConfig
with torch.device("meta"):
    module = MMDiT(MMDiTConfig(dim=640, depth=4, num_heads=10, pos_embed_size=16, qk_norm=True))
state = {name: torch.full(t.shape, 0.5, dtype=torch.bfloat16) for name, t in module.state_dict().items()}
save_file(state, sys.argv[1]); size = sum(t.nbytes for t in state.values()); del state
private = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = private()
loaded = weights.load_mmdit(sys.argv[1])
print(size, private() - before)
"""
    path = tmp_path / "big.safetensors"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=root, capture_output=True, text=True, check=True
    )
    size, growth = map(int, done.stdout.split())
    assert size > 90e6
    assert growth < 0.1 * size


def test_build_follows_the_tensors_device_and_dtype(parts):
    bf16 = {name: tensor.bfloat16() for name, tensor in parts["vae"].items()}
    module = weights.build_vae(bf16)
    module.load_state_dict(bf16)
    assert_loaded(module.eval().requires_grad_(False), bf16)
    meta = {name: tensor.to("meta") for name, tensor in parts["mmdit"].items()}
    assert all(tensor.is_meta for tensor in weights.build_mmdit(meta).state_dict().values())
    with torch.device("meta"):
        assert next(weights.build_vae(bf16).parameters()).is_meta


def test_nonfinite_names_the_guilty(official):
    module = weights.load_vae(official)
    assert weights.nonfinite(module) == []
    module.state_dict()["decoder.conv_in.bias"][3] = float("nan")
    assert weights.nonfinite(module) == ["decoder.conv_in.bias"]


def test_text_encoders_come_with_their_tokenizers(official, diffusers):
    encodings = []
    for source in (official, diffusers):
        encodings.append(weights.load_textenc(source).encode(["a red cat"]))
    assert encodings[0].context.shape == (1, 77 + 77, 256)
    assert encodings[0].pooled.shape == (1, 64 + 128)
    assert torch.equal(encodings[0].context, encodings[1].context)
    lazily = weights.load_textenc(official, one_by_one=True).encode(["a red cat"])
    assert torch.equal(lazily.context, encodings[0].context)


def test_text_encoders_may_come_from_several_sources(official, tmp_path, parts, writers):
    folder = writers["official"](tmp_path / "other", parts)
    shutil.rmtree(folder / "tokenizer")
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(
        MissingComponent, match=r"no tokenizer for text encoder CLIP-L.*vocab\.json and merges.txt"
    ):
        weights.load_textenc(folder)
    t5 = writers["write"](tmp_path / "my_t5.safetensors", parts["t5"])
    whole = weights.load_textenc(folder, t5=t5, tokenizers=official).encode(["a"])
    assert torch.equal(whole.context, weights.load_textenc(official).encode(["a"]).context)


def test_without_t5_the_context_keeps_its_width(official):
    encoding = weights.load_textenc(official, t5=False).encode(["a"])
    assert encoding.context.shape == (1, 154, 256)
    assert not encoding.context[:, 77:].any()
