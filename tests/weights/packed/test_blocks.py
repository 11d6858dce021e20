"""Blocks are unpacked to the last bit as the gguf package does it."""

import pytest
import torch
from safetensors.torch import load_file

from weights.packed.blocks import BLOCKS, unpack
from weights.packed.gguf import MappedGGUF


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_pattern_of_bytes_is_what_the_package_makes_of_it(kind):
    gguf = pytest.importorskip("gguf")
    block = BLOCKS[kind]
    generator = torch.Generator().manual_seed(sum(map(ord, kind)))
    rows = torch.randint(0, 256, (5, 7 * block.nbytes), generator=generator, dtype=torch.uint8)
    expected = gguf.quants.dequantize(rows.numpy(), gguf.GGMLQuantizationType[kind])
    found, expected = unpack(rows, kind), torch.from_numpy(expected)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(0.5).view(torch.int32), expected.nan_to_num(0.5).view(torch.int32))


def test_a_block_by_hand():
    numbers = torch.arange(-16, 16, dtype=torch.int8)
    block = torch.cat([torch.tensor([0.5], dtype=torch.float16).view(torch.uint8), numbers.view(torch.uint8)])
    assert torch.equal(unpack(block[None], "Q8_0"), numbers.float()[None] / 2)


@pytest.mark.parametrize("name", ["zoo_types", "zoo_bytes"])
def test_the_reference_of_all_types(shared_reference, name):
    folder = shared_reference / "quantised" / "gguf"
    expected = load_file(folder / f"{name}.expected.safetensors")
    file = MappedGGUF(folder / f"{name}.gguf")
    assert len(list(file)) >= len(BLOCKS)
    for key in file:
        found = file[key].float().view(torch.int32)
        assert torch.equal(found, expected[f"dequant/{key}"].view(torch.int32)), key
