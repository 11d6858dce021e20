"""The block formats of GGUF, unpacked with torch: to the last bit what ggml and the gguf package give.

A row is a run of blocks, each of 32 or 256 numbers with a scale of its own in float16. Names are ggml's:
Qn_0 is d · q, Qn_1 is d · q + m, Qn_K has 256 numbers in groups with small integer scales of their own, IQ4
looks its numbers up in a table. The formats are described in ggml's source (ggml-common.h); products are
taken in float32 and in ggml's order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The 16 values of IQ4, closer where weights are more."""


@dataclass(frozen=True)
class Block:
    """One format."""

    size: int  # numbers in a block
    nbytes: int  # bytes of a block
    unpack: Callable[[Tensor], Tensor]  # (N, nbytes) uint8 to (N, size) float32


def unpack(packed: Tensor, kind: str) -> Tensor:
    """Rows of blocks as numbers.

    Args:
        packed: (rows, bytes) uint8.
        kind: a key of BLOCKS.

    Returns:
        (rows, columns), float32.
    """
    block = BLOCKS[kind]
    return block.unpack(packed.reshape(-1, block.nbytes)).view(len(packed), -1)


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at a byte, as float32: (N, 1)."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _shifts(bytes_: Tensor, *by: int) -> Tensor:
    """Each byte shifted right by each amount, in groups: (N, G, B) to (N, G, len(by), B)."""
    amounts = torch.tensor(by, dtype=torch.uint8, device=bytes_.device)
    return bytes_[:, :, None, :] >> amounts[None, None, :, None]


def _nibbles(bytes_: Tensor) -> Tensor:
    """(N, B) bytes to (N, 2 B) numbers below 16: the low halves of all, then the high halves."""
    return (_shifts(bytes_[:, None], 0, 4) & 15).flatten(1)


def _bits(bytes_: Tensor) -> Tensor:
    """(N, 4) bytes to their 32 bits, (N, 32), the lowest first."""
    amounts = torch.arange(8, dtype=torch.uint8, device=bytes_.device)
    return ((bytes_[:, :, None] >> amounts) & 1).flatten(1)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, 6:]) | (_bits(blocks[:, 2:6]) << 4)
    return _half(blocks, 0) * (numbers.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, 8:]) | (_bits(blocks[:, 4:8]) << 4)
    return _half(blocks, 0) * numbers.float() + _half(blocks, 2)


def _q2_k(blocks: Tensor) -> Tensor:
    """16 groups of 16: a scale and a minimum of 4 bits each, then numbers of 2 bits."""
    scales, quarters = blocks[:, :16], blocks[:, 16:80]
    scale = _half(blocks, 80) * (scales & 15).float()
    minimum = _half(blocks, 82) * (scales >> 4).float()
    numbers = (_shifts(quarters.reshape(-1, 2, 32), 0, 2, 4, 6) & 3).reshape(-1, 16, 16).float()
    return (scale[:, :, None] * numbers - minimum[:, :, None]).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    """16 groups of 16: scales of 6 bits less 32, numbers of 2 bits with a third in a mask, less 4."""
    mask, quarters, packed = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    low = _nibbles(packed[:, :8])
    high = (_shifts(packed[:, None, 8:], 0, 2, 4, 6) & 3).flatten(1)
    scale = _half(blocks, 108) * ((low | (high << 4)).float() - 32)
    numbers = (_shifts(quarters.reshape(-1, 2, 32), 0, 2, 4, 6) & 3).reshape(-1, 16, 16)
    top = (_shifts(mask[:, None], *range(8)) & 1).reshape(-1, 16, 16)
    return (scale[:, :, None] * ((numbers | (top << 2)).float() - 4)).flatten(1)


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The 8 scales and 8 minima of Q4_K and Q5_K, of 6 bits each in 12 bytes."""
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=1)
    minimum = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)
    return scale.float(), minimum.float()


def _q4_k(blocks: Tensor) -> Tensor:
    """8 groups of 32: a scale and a minimum of 6 bits each, numbers of 4 bits."""
    scale, minimum = _six_bits(blocks[:, 4:16])
    scale, minimum = _half(blocks, 0) * scale, _half(blocks, 2) * minimum
    numbers = (_shifts(blocks[:, 16:].reshape(-1, 4, 32), 0, 4) & 15).reshape(-1, 8, 32).float()
    return (scale[:, :, None] * numbers - minimum[:, :, None]).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    """As Q4_K, with a fifth bit of each number in 32 bytes."""
    scale, minimum = _six_bits(blocks[:, 4:16])
    scale, minimum = _half(blocks, 0) * scale, _half(blocks, 2) * minimum
    low = (_shifts(blocks[:, 48:].reshape(-1, 4, 32), 0, 4) & 15).reshape(-1, 8, 32)
    high = (_shifts(blocks[:, None, 16:48], *range(8)) & 1).reshape(-1, 8, 32)
    numbers = (low | (high << 4)).float()
    return (scale[:, :, None] * numbers - minimum[:, :, None]).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    """16 groups of 16: scales of 8 bits, numbers of 6 bits less 32."""
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    low = (_shifts(blocks[:, :128].reshape(-1, 2, 64), 0, 4) & 15).reshape(-1, 8, 32)
    high = (_shifts(blocks[:, 128:192].reshape(-1, 2, 32), 0, 2, 4, 6) & 3).reshape(-1, 8, 32)
    numbers = ((low | (high << 4)).float() - 32).reshape(-1, 16, 16)
    return ((_half(blocks, 208) * scales)[:, :, None] * numbers).flatten(1)


def looked_up(indices: Tensor, table: Tensor) -> Tensor:
    """Each number's place in a table, uint8, to what stands there: faster than indexing, on a CPU."""
    return table.index_select(0, indices.flatten().int()).view(indices.shape)


def _iq4(numbers: Tensor) -> Tensor:
    """Numbers below 16 to the values of IQ4."""
    return looked_up(numbers, torch.tensor(IQ4_VALUES, dtype=torch.float32, device=numbers.device))


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _iq4(_nibbles(blocks[:, 2:]))


def _iq4_xs(blocks: Tensor) -> Tensor:
    """8 groups of 32 with scales of 6 bits less 32."""
    low = (blocks[:, 4:8, None] >> torch.tensor([0, 4], dtype=torch.uint8, device=blocks.device)) & 15
    pairs = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device)
    high = (blocks[:, 2:4, None] >> pairs) & 3
    scale = _half(blocks, 0) * ((low.flatten(1) | (high.flatten(1) << 4)).float() - 32)
    numbers = (_shifts(blocks[:, 8:].reshape(-1, 8, 16), 0, 4) & 15).reshape(-1, 8, 32)
    return (scale[:, :, None] * _iq4(numbers)).flatten(1)


BLOCKS: Mapping[str, Block] = {
    "Q4_0": Block(32, 18, _q4_0),
    "Q4_1": Block(32, 20, _q4_1),
    "Q5_0": Block(32, 22, _q5_0),
    "Q5_1": Block(32, 24, _q5_1),
    "Q8_0": Block(32, 34, _q8_0),
    "Q2_K": Block(256, 84, _q2_k),
    "Q3_K": Block(256, 110, _q3_k),
    "Q4_K": Block(256, 144, _q4_k),
    "Q5_K": Block(256, 176, _q5_k),
    "Q6_K": Block(256, 210, _q6_k),
    "IQ4_NL": Block(32, 18, _iq4_nl),
    "IQ4_XS": Block(256, 136, _iq4_xs),
}
"""Name to format."""
