"""What the machine can do at best: a large matrix product, a large copy."""

from dataclasses import dataclass

import torch

from .clock import alternate

SIDE = {"cuda": 8192}
"""Of the matrices; 2048 on other devices, where one product then takes a tenth of a second or less."""
COPIED = 2**28
"""Bytes that are copied: more than any cache holds."""


@dataclass(frozen=True)
class Ceilings:
    """Rates by the seconds that are compared, see `Timing.compared`: on a CPU, those of one thread."""

    flops: float  # floating-point operations a second, in the dtype of the models
    bytes: float  # read and written a second


@torch.inference_mode()
def find_ceilings(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> Ceilings:
    """Measure both, the best of several.

    Args:
        device: where.
        dtype: of the matrices, drawn normal: zeros are multiplied faster.
        repeats: runs of each.
    """
    side = SIDE.get(device.type, 2048)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.empty(COPIED, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    (product,) = alternate([lambda: left @ right], repeats, device)
    (copy,) = alternate([lambda: target.copy_(source)], repeats, device)
    return Ceilings(2 * side**3 / min(product.compared), 2 * COPIED / min(copy.compared))
