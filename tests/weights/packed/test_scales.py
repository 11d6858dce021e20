"""fp8 and int8 with scales, in every spelling: read exactly, or refused with the reason."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import weights
from weights import CheckpointError, FileFormatError
from weights.packed.linear import PackedLinear

LAYER = "joint_blocks.1.x_block.attn.proj"
PREFIX = "model.diffusion_model."


def as_bytes(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.fixture
def scaled(parts, tmp_path):
    """Write the model with one layer in 8 bits; gives the file and the numbers that the layer stands for."""

    def write(
        extra=None, metadata=None, fp8=torch.float8_e4m3fn, prefix=PREFIX, scale="weight_scale", rows=False
    ):
        weight = parts["mmdit"][f"{LAYER}.weight"]
        factor = weight.abs().amax(dim=1, keepdim=True) / 100 if rows else weight.abs().max() / 100
        stored = (weight / factor).round().to(fp8)
        state = {prefix + name: tensor for name, tensor in parts["mmdit"].items()}
        state |= {f"{prefix}{LAYER}.weight": stored}
        state |= {f"{prefix}{LAYER}.{scale}": factor} if scale else {}
        state |= {prefix + name: tensor for name, tensor in (extra or {}).items()}
        path = tmp_path / "scaled.safetensors"
        save_file({name: tensor.clone() for name, tensor in state.items()}, path, metadata=metadata)
        return path, stored.float() * factor

    return write


def metadata(layer, stated):
    return {
        "_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {layer: {"format": stated}}})
    }


COMFY = {f"{LAYER}.comfy_quant": as_bytes('{"format": "float8_e4m3fn"}')}
SPELLINGS = {
    "old": {
        "extra": {"scaled_fp8": torch.zeros(0), f"{LAYER}.scale_input": torch.ones(())},
        "scale": "scale_weight",
    },
    "a key for each layer": {"extra": COMFY},
    "in the header": {"metadata": metadata(LAYER, "float8_e4m3fn")},
    "in the header, prefix and all": {"metadata": metadata(PREFIX + LAYER, "float8_e4m3fn")},
    "no prefix": {"extra": COMFY, "prefix": ""},
    "e5m2": {"metadata": metadata(LAYER, "float8_e5m2"), "fp8": torch.float8_e5m2},
    "a scale a row": {"extra": COMFY, "rows": True},
    "int8": {"metadata": metadata(LAYER, "int8_rowwise"), "fp8": torch.int8, "rows": True},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_scaled_layer_is_its_numbers_times_its_scale(scaled, spelling):
    path, numbers = scaled(**SPELLINGS[spelling])
    layer = weights.load_mmdit(path, dtype=torch.float32).get_submodule(LAYER)
    assert isinstance(layer, PackedLinear)
    assert torch.equal(layer.weight, numbers)
    assert layer.packed.nbytes == numbers.numel()
    assert torch.equal(
        weights.load_mmdit(path, dtype=torch.float32, unpack=True).get_submodule(LAYER).weight, numbers
    )
    assert "with scales" in str(weights.inspect(path))


def comfy(stated):
    return {f"{LAYER}.comfy_quant": as_bytes(stated)}


REFUSED = {
    "no scale": ({"extra": COMFY, "scale": ""}, "its scale is not there"),
    "NaN": ({"extra": COMFY | {f"{LAYER}.weight_scale": torch.tensor(float("nan"))}}, "not positive"),
    "zero": ({"extra": COMFY | {f"{LAYER}.weight_scale": torch.zeros(())}}, "not positive"),
    "negative": ({"extra": COMFY | {f"{LAYER}.weight_scale": -torch.ones(())}}, "not positive"),
    "seven": ({"extra": COMFY | {f"{LAYER}.weight_scale": torch.ones(7)}}, "one for each of 128 rows"),
    "unknown format": (
        {"extra": comfy('{"format": "nvfp4"}')},
        "in the format nvfp4, which is not supported",
    ),
    "another format": (
        {"extra": comfy('{"format": "float8_e5m2"}')},
        "said to be float8_e5m2 and is stored as F8_E4M3",
    ),
    "no JSON": ({"extra": comfy("{")}, "comfy_quant holds no format"),
    "header no JSON": ({"metadata": {"_quantization_metadata": "{"}}, "cannot be read"),
    "both spellings": ({"extra": COMFY | {f"{LAYER}.scale_weight": torch.ones(())}}, "are both there"),
    "of full precision": ({"fp8": torch.float16}, "whether it is multiplied already cannot be known"),
    "another marker": ({"extra": {"scaled_fp8": torch.zeros(0).half()}}, "fp8 or F32 marks the file"),
    "of nothing": ({"extra": {"joint_blocks.0.none.weight_scale": torch.ones(())}}, "is there and"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_scale_that_cannot_be_meant_is_refused(scaled, what):
    options, message = REFUSED[what]
    path, _ = scaled(**options)
    with pytest.raises(FileFormatError, match=message):
        weights.load_mmdit(path)


@pytest.mark.parametrize("name", ["plain_e4m3fn", "scaled_comfy_old"])
def test_reference_models_give_the_reference_velocity(shared_reference, name):
    path = shared_reference / "quantised" / "fp8" / f"{name}.safetensors"
    expected = load_file(path.with_suffix(".expected.safetensors"))
    model = weights.load_mmdit(path, dtype=torch.float64)
    given = [expected[f"in/{key}"].double() for key in ("x", "timestep", "context", "y")]
    with torch.no_grad():
        out = model(given[0], given[1] / 1000, *given[2:])
    stored = expected["out64/velocity"].double()
    assert (out - stored).abs().max() <= 1e-6 * stored.abs().max()


@pytest.mark.parametrize("name", ["part_comfy_quant_new", "part_quantization_metadata", "part_e5m2"])
def test_reference_layers_are_exact(shared_reference, name):
    folder = shared_reference / "quantised" / "fp8"
    expected = load_file(folder / f"{name}.expected.safetensors")
    component = weights.resolve(folder / f"{name}.safetensors", ["mmdit"]).component("mmdit")
    tensors = component.tensors()
    assert set(expected) <= set(tensors)  # those that are held whole
    for key, stored in expected.items():
        assert torch.equal(tensors[key].float(), stored.float()), key


def test_every_reference_file_to_refuse_is_refused(shared_reference):
    folder = shared_reference / "quantised" / "fp8" / "bad"
    for name in json.loads((folder / "index.json").read_text()):
        component = None
        try:
            component = weights.resolve(folder / f"{name}.safetensors", ["mmdit"]).component("mmdit")
            values = component.tensors()
        except CheckpointError:
            continue
        if name == "scale_per_row":
            continue  # read, each row with its own
        assert name == "weight_nan_byte"
        assert any(tensor.isnan().any() for tensor in values.values())
