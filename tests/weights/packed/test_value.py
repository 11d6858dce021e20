"""Weights in few bits as numbers: some rows at a time give the bits of all at once."""

import pytest
import torch

from weights.packed.blocks import BLOCKS
from weights.packed.value import AT_ONCE, STORED, Packed, columns_of, unpacked

KINDS = (*BLOCKS, *STORED)


def rows_of(kind: str, count: int, columns: int = 1024) -> torch.Tensor:
    """Random rows whose numbers are finite: no block's scale has the exponent of infinity."""
    nbytes = columns // BLOCKS[kind].size * BLOCKS[kind].nbytes if kind in BLOCKS else columns
    rows = torch.randint(
        0, 256, (count, nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return rows & 0xBB if kind in BLOCKS or kind == "F8_E5M2" else rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_at_a_time_are_the_bits_of_all_at_once(kind, dtype) -> None:
    rows = rows_of(kind, count=2 * AT_ONCE // 1024 + 7)
    scale = torch.rand(len(rows), 1) if kind in STORED else None
    assert columns_of(rows, kind) == 1024
    scales = [None] * len(rows) if scale is None else scale.split(100)
    each = torch.cat([unpacked(some, kind, own) for some, own in zip(rows.split(100), scales, strict=False)])
    assert torch.equal(unpacked(rows, kind, scale, dtype).nan_to_num(), each.to(dtype).nan_to_num())
    assert torch.equal(
        Packed(kind, rows, (len(rows), 1024), scale).unpack_rows(3, 9).nan_to_num(), each[3:9].nan_to_num()
    )


@pytest.mark.parametrize("kind", STORED)
def test_every_byte_is_the_number_that_torch_reads(kind) -> None:
    every = torch.arange(256, dtype=torch.uint8)[None]
    found, expected = unpacked(every, kind, None), every.view(STORED[kind]).float()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    assert torch.equal(found.signbit(), expected.signbit())
