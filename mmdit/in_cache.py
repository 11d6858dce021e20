"""What a CPU computes some rows at a time, so that the float32 numbers between stay in its cache.

torch composes the qk-norm of several operators, each of which writes a tensor as large as its input and reads
the next from memory; and its tanh-GELU in 16 bits takes four times as long as the one with erf.
"""

from collections.abc import Callable
from math import pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

CACHED = 2**17
"""Numbers that are computed with at a time: in float32 half a megabyte."""


def by_tokens(function: Callable[[Tensor], Tensor], heads: Tensor) -> Tensor:
    """What a function of each token by itself makes of heads (B, H, L, K), to the same bits.

    On a CPU it is called for some tokens at a time: the qk-norm in 16 bits takes a third to two thirds of
    the time.
    """
    if not _gains(heads):
        return function(heads)
    some = heads.split(max(1, CACHED * heads.shape[2] // heads.numel()), dim=2)
    return torch.cat([function(tokens) for tokens in some], dim=2)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form: x · (1 + tanh u) / 2, which is x · sigmoid(2 u), u = √(2/π) (x + 0.044715 x³).

    In 16 bits on a CPU it is computed as the latter in float32 and rounded once, as torch does: in two thirds
    to three quarters of the time.
    """
    if x.itemsize > 2 or not _gains(x):
        return F.gelu(x, approximate="tanh")
    rows = x.flatten(0, -2)
    size = max(1, CACHED // 2 // x.shape[-1])
    out, slope = torch.empty_like(rows), 2 * sqrt(2 / pi)
    first = torch.tensor(slope, dtype=torch.float32)
    for some, result in zip(rows.split(size), out.split(size), strict=True):
        x32 = some.float()
        u2 = torch.addcmul(first, x32, x32, value=0.044715 * slope).mul_(x32)
        result.copy_(u2.sigmoid_().mul_(x32))
    return out.view_as(x)


def _gains(x: Tensor) -> bool:
    """Whether it is worth it: on a CPU, for more than fits, where neither gradients nor compilers look."""
    eager = not x.requires_grad and not torch.compiler.is_compiling()
    return eager and x.device.type == "cpu" and x.numel() > CACHED
