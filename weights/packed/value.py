"""A weight in few bits, and the numbers that it stands for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import BLOCKS, looked_up, unpack

STORED = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8}
"""The kinds that have one number an element, and perhaps a scale for all or for each row."""

AT_ONCE = 2**18
"""Numbers that are unpacked at a time on a CPU: in float32 a megabyte, which stays in a core's cache."""


@dataclass(frozen=True)
class Packed:
    """A tensor of few bits an element."""

    kind: str  # a key of BLOCKS or of STORED
    rows: Tensor  # (rows, bytes), uint8
    shape: tuple[int, ...]  # of the numbers
    scale: Tensor | None = None  # float32, () or (rows, 1): what each element is multiplied by

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All numbers in their shape, made in float32 and rounded to `dtype`."""
        return unpacked(self.rows, self.kind, self.scale, dtype).view(self.shape)

    def unpack_rows(self, first: int, stop: int) -> Tensor:
        """The numbers of some rows: (rows, columns), float32."""
        return _unpacked(self.rows[first:stop], self.kind, _rows_of(self.scale, first, stop))


def unpacked(rows: Tensor, kind: str, scale: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Packed rows as numbers, made in float32 and rounded to `dtype`.

    On a CPU some rows are made at a time, which takes a third to a sixth of the time for the same bits: what
    is in float32 does not leave the cache. A GPU, and a compiler, get them all at once.

    Args:
        rows: (rows, bytes), uint8.
        kind: a key of BLOCKS or of STORED.
        scale: float32, () or (rows, 1), by which numbers are multiplied, or None.
        dtype: of the result.

    Returns:
        (rows, columns).
    """
    step = max(1, AT_ONCE // columns_of(rows, kind))
    if rows.device.type != "cpu" or torch.compiler.is_compiling() or len(rows) <= step:
        return _unpacked(rows, kind, scale).to(dtype)
    numbers = torch.empty(len(rows), columns_of(rows, kind), dtype=dtype)
    for first in range(0, len(rows), step):
        some = slice(first, first + step)
        numbers[some] = _unpacked(rows[some], kind, _rows_of(scale, first, first + step))
    return numbers


def columns_of(rows: Tensor, kind: str) -> int:
    """How many numbers a packed row has."""
    if kind in BLOCKS:
        return rows.shape[1] // BLOCKS[kind].nbytes * BLOCKS[kind].size
    return rows.shape[1]


def _unpacked(rows: Tensor, kind: str, scale: Tensor | None) -> Tensor:
    """(rows, bytes) uint8 to (rows, columns) float32."""
    if kind in BLOCKS:
        return unpack(rows, kind)
    if kind == "F8_E4M3" and rows.device.type == "cpu":  # looked up: torch's own cast takes six times as long
        numbers = looked_up(rows, torch.arange(256, dtype=torch.uint8).view(STORED[kind]).float())
    else:
        numbers = rows.view(STORED[kind]).float()
    return numbers if scale is None else numbers * scale


def _rows_of(scale: Tensor | None, first: int, stop: int | None) -> Tensor | None:
    """The scales of some rows."""
    return scale if scale is None or scale.ndim == 0 else scale[first:stop]
