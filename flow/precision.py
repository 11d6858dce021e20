"""State and guidance are kept in float32 or better, whatever the model computes in."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32 where it has less, as it is where it has float32 or more."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
