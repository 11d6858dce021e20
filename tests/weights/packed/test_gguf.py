"""GGUF files load layer by layer in few bits, or say what they are."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file

import weights
from weights import CheckpointError, FileFormatError, SourceError
from weights.packed.gguf import MappedGGUF, read_gguf
from weights.packed.linear import PackedLinear


def numbers_of(path):
    file = MappedGGUF(path)
    return {name: file[name].double() for name in file}


def inputs(model):
    config = model.config
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 16, 8, 8), (2, 5, config.context_dim), (2, config.pooled_dim)
    latents, context, pooled = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return latents, torch.tensor([0.2, 0.9], dtype=torch.float64), context, pooled


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_a_model_runs_on_its_blocks(write_gguf, parts, kind):
    path = write_gguf(parts["mmdit"], kind)
    packed, whole = (weights.load_mmdit(path, dtype=torch.float64, unpack=unpack) for unpack in (False, True))
    expected = numbers_of(path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in whole.state_dict().items())
    layers = [layer for layer in packed.modules() if isinstance(layer, PackedLinear)]
    assert sum(name.count("_blocks.") and tensor.ndim == 2 for name, tensor in expected.items()) == len(
        layers
    )
    assert not any(isinstance(layer, PackedLinear) for layer in whole.modules())
    with torch.no_grad():
        assert torch.equal(packed(*inputs(packed)), whole(*inputs(whole)))
    stored = sum(layer.packed.nbytes for layer in layers)
    assert (
        stored
        < 1.1
        * sum(layer.weight.numel() for layer in layers)
        * {"Q8_0": 8.5, "Q4_0": 4.5, "Q5_1": 6}[kind]
        / 8
    )


def test_casting_a_model_leaves_its_blocks(write_gguf, parts):
    model = weights.load_mmdit(write_gguf(parts["mmdit"]))
    layer = model.get_submodule("joint_blocks.0.x_block.attn.qkv")
    before = layer.weight
    assert model.dtype == torch.bfloat16
    model.double()
    assert torch.equal(layer.weight, before)
    assert layer.bias.dtype == torch.float64


def test_the_position_table_may_lack_its_first_axis(write_gguf, parts):
    state = dict(parts["mmdit"])
    state["pos_embed"] = state["pos_embed"][0]
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}
    model = weights.load_mmdit(write_gguf(prefixed), dtype=torch.float32)
    assert torch.equal(model.pos_embed[0], state["pos_embed"])


LLAMA = {
    "shared": "token_embd",
    "encoder.final_layer_norm": "enc.output_norm",
    "0.SelfAttention.relative_attention_bias": "attn_rel_b",
    **{f"0.SelfAttention.{name}": f"attn_{name}" for name in "qkvo"},
    "0.layer_norm": "attn_norm",
    "1.layer_norm": "ffn_norm",
    "1.DenseReluDense.wi_0": "ffn_gate",
    "1.DenseReluDense.wi_1": "ffn_up",
    "1.DenseReluDense.wo": "ffn_down",
}


def test_a_t5_encoder_in_llama_cpps_names(write_gguf, parts):
    state = {}
    for name, tensor in parts["t5"].items():
        path = name.removesuffix(".weight")
        if path.startswith("encoder.block."):
            number, rest = path.removeprefix("encoder.block.").split(".layer.")
            state[f"enc.blk.{number}.{LLAMA[rest]}.weight"] = tensor
        else:
            state[f"{LLAMA[path]}.weight"] = tensor
    path = write_gguf(
        state | {"dec.blk.0.attn_q.weight": torch.ones(1)}, architecture="t5encoder", stack="blk.1."
    )
    model = weights.load_t5(path, dtype=torch.float32)
    assert torch.equal(model.shared.weight, parts["t5"]["shared.weight"])
    layer = "encoder.block.1.layer.0.SelfAttention.q"
    assert isinstance(model.get_submodule(layer), PackedLinear)
    error = model.get_submodule(layer).weight - parts["t5"][f"{layer}.weight"]
    assert 0 < error.abs().max() < 0.02
    report = weights.inspect(path)
    assert report.components["t5"].layout == "llama.cpp"
    assert "Q8_0" in report.components["t5"].dtypes


def test_weights_that_are_not_finite_are_refused(write_gguf, parts):
    path = write_gguf(parts["mmdit"])
    data = bytearray(path.read_bytes())
    file = MappedGGUF(path)
    start = file._offsets["joint_blocks.1.x_block.mlp.fc1.weight"]
    data[start : start + 2] = struct.pack("<e", float("nan"))
    path.write_bytes(data)
    with pytest.raises(weights.ValuesError, match=r"joint_blocks\.1\.x_block\.mlp\.fc1\.weight"):
        weights.load_mmdit(path)


def test_another_model_is_named(write_gguf, parts, tmp_path):
    with pytest.raises(FileFormatError, match="a GGUF file of flux, not of Stable Diffusion 3"):
        weights.load_mmdit(write_gguf({"a": torch.ones(2)}, architecture="flux"))
    with pytest.raises(SourceError, match="there is no file"):
        read_gguf(tmp_path / "none.gguf")
    renamed = write_gguf(parts["mmdit"]).rename(tmp_path / "a.safetensors")
    with pytest.raises(FileFormatError, match=r"rename it to end in \.gguf"):
        weights.load_mmdit(renamed)


def cut(data, at):
    return data[:at]


def poked(data, at, new):
    return data[:at] + new + data[at + len(new) :]


DAMAGE = {
    "empty": (lambda data: b"", "is empty"),
    "another magic": (lambda data: b"GGML" + data[4:], "does not start with GGUF"),
    "a version to come": (lambda data: poked(data, 4, b"\x63"), "of version 99"),
    "bytes swapped": (lambda data: poked(data, 4, b"\0\0\0\x03"), "its bytes swapped"),
    "cut in the head": (lambda data: cut(data, 40), "ends inside its header"),
    "cut in the data": (lambda data: cut(data, len(data) - 64), "is truncated"),
    "too many tensors": (lambda data: poked(data, 8, struct.pack("<Q", 2**62)), "more than it has room for"),
    "too many keys": (lambda data: poked(data, 16, struct.pack("<Q", 2**61)), "more than it has room for"),
    "a text too long": (lambda data: poked(data, 24, struct.pack("<Q", 2**60)), "ends inside its header"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_told(write_gguf, what):
    path = write_gguf({"a.weight": torch.ones(4, 32)})
    change, message = DAMAGE[what]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FileFormatError, match=message):
        read_gguf(path)


def test_every_damaged_reference_file_is_told(shared_reference):
    folder = shared_reference / "quantised" / "gguf" / "bad"
    for name in json.loads((folder / "index.json").read_text()):
        path = folder / f"{name}.gguf"
        if name in ("good_reference", "name_very_long"):
            read_gguf(path)
            continue
        with pytest.raises(CheckpointError):
            weights.load_mmdit(path)


@pytest.mark.parametrize("name", ["gguf/city96_q8_0.gguf", "gguf/sdcpp_q4_0.gguf"])
@pytest.mark.parametrize("unpack", [False, True])
def test_reference_models_give_the_reference_velocity(shared_reference, name, unpack):
    path = shared_reference / "quantised" / name
    expected = load_file(path.with_suffix(".expected.safetensors"))
    model = weights.load_mmdit(path, dtype=torch.float64, unpack=unpack)
    given = [expected[f"in/{key}"].double() for key in ("x", "timestep", "context", "y")]
    with torch.no_grad():
        out = model(given[0], given[1] / 1000, *given[2:])
    stored = expected["out64/velocity"].double()
    assert (out - stored).abs().max() <= 1e-6 * stored.abs().max()


def test_the_reference_t5_gives_the_reference_tokens(shared_reference):
    path = shared_reference / "quantised" / "gguf" / "t5encoder.gguf"
    expected = load_file(path.with_suffix(".expected.safetensors"))
    with torch.no_grad():
        out = weights.load_t5(path, dtype=torch.float64)(expected["in/input_ids"])
    stored = expected["out64/last_hidden_state"].double()
    assert (out - stored).abs().max() <= 1e-6 * stored.abs().max()
