"""State and guidance are kept in float32 or better, whatever the model computes in.

Some sums want float64: the solutions of the exact inverse, the integers of `bitexact`, measures. Apple's
device (mps) has none, so there they are done on the CPU, which costs little beside a velocity.
"""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32 where it has less, as it is where it has float32 or more."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def off_mps(x: Tensor) -> Tensor:
    """`x` on the CPU if its device has no float64, else where it is."""
    return x.cpu() if x.device.type == "mps" else x


def as_float64(x: Tensor) -> Tensor:
    """`x` in float64, on the CPU if its device has none. `.to` another tensor's brings it back."""
    return off_mps(x).double()
