"""Weights rounded to 8 bits: how far they move, and that a file gives them back."""

import pytest
import torch

import weights
from weights.packed.linear import PackedLinear
from weights.packed.value import Packed
from weights.packed.write import TARGETS, rounded, write_packed

STEP = {"int8": 0.5 / 127, "fp8": 0.5 / 8, "fp8_e5m2": 0.5 / 4}
"""Half a step between neighbours: in int8 of the row's largest number, in fp8 of the number itself."""


@pytest.mark.parametrize("to", TARGETS)
def test_rounding_moves_a_number_by_half_a_step_at_most(to):
    weight = torch.randn(20, 300, generator=torch.Generator().manual_seed(1)).double()
    weight[3], weight[4] = 0, weight[4] * 1e-3
    found = rounded(weight, to).unpack().double()
    relative_to = weight.abs().amax(dim=1, keepdim=True) if to == "int8" else weight.abs()
    smallest = 1e-5 * weight.abs().amax(dim=1, keepdim=True)  # below it, fp8 has no more digits
    assert ((found - weight).abs() <= 1.0001 * STEP[to] * relative_to + smallest).all()
    assert torch.equal(found[3], weight[3])
    largest = weight.abs().amax(dim=1)
    torch.testing.assert_close(found.abs().amax(dim=1), largest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("to", TARGETS)
def test_what_is_written_is_read(tmp_path, parts, to):
    names = [name for name in parts["mmdit"] if name.endswith("mlp.fc1.weight")]
    packed = {name: rounded(parts["mmdit"][name], to) for name in names}
    rest = {name: tensor for name, tensor in parts["mmdit"].items() if name not in packed}
    path = tmp_path / "a.safetensors"
    write_packed(path, rest, packed, to, prefix="model.diffusion_model.")
    model = weights.load_mmdit(path)
    for name, weight in packed.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert isinstance(layer, PackedLinear)
        assert torch.equal(layer.weight, weight.unpack())
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in rest.items())


def test_what_is_unpacked_when_it_is_loaded_goes_to_its_dtype_one_by_one(tmp_path, parts, monkeypatch):
    """In float32, all weights together would take four times the memory of the file."""
    names = [name for name in parts["mmdit"] if name.endswith("mlp.fc1.weight")]
    packed = {name: rounded(parts["mmdit"][name], "int8") for name in names}
    rest = {name: tensor for name, tensor in parts["mmdit"].items() if name not in packed}
    path = tmp_path / "a.safetensors"
    write_packed(path, rest, packed, "int8", prefix="model.diffusion_model.")
    unpack, asked = Packed.unpack, []

    def watched(weight: Packed, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        asked.append(dtype)
        return unpack(weight, dtype)

    monkeypatch.setattr(Packed, "unpack", watched)
    model = weights.load_mmdit(path, dtype=torch.bfloat16, unpack=True)
    assert asked == [torch.bfloat16] * len(names)
    for name, weight in packed.items():
        assert torch.equal(model.state_dict()[name], unpack(weight).bfloat16())
