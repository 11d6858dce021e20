"""A weight in few bits, and the numbers that it stands for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import BLOCKS, unpack

STORED = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8}
"""The kinds that have one number an element, and perhaps a scale for all or for each row."""


@dataclass(frozen=True)
class Packed:
    """A tensor of few bits an element."""

    kind: str  # a key of BLOCKS or of STORED
    rows: Tensor  # (rows, bytes), uint8
    shape: tuple[int, ...]  # of the numbers
    scale: Tensor | None = None  # float32, () or (rows, 1): what each element is multiplied by

    def unpack(self, first: int = 0, stop: int | None = None) -> Tensor:
        """The numbers, in float32: all, in their shape, or those of some rows, as (rows, columns)."""
        numbers = unpacked(self.rows[first:stop], self.kind, _rows_of(self.scale, first, stop))
        return numbers.view(self.shape) if (first, stop) == (0, None) else numbers


def unpacked(rows: Tensor, kind: str, scale: Tensor | None) -> Tensor:
    """Packed rows as numbers: (rows, bytes) uint8 to (rows, columns) float32."""
    if kind in BLOCKS:
        return unpack(rows, kind)
    numbers = rows.view(STORED[kind]).float()
    return numbers if scale is None else numbers * scale


def _rows_of(scale: Tensor | None, first: int, stop: int | None) -> Tensor | None:
    """The scales of some rows."""
    return scale if scale is None or scale.ndim == 0 else scale[first:stop]
