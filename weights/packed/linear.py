"""A linear layer whose weight stays in few bits and is unpacked each time that it is used."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .value import Packed, unpacked


class PackedLinear(nn.Module):
    """x Wᵀ + b with W unpacked for the call: memory is the file's, and one layer's numbers at a time.

    The numbers are made in float32, to the last bit those of the format, and rounded to the dtype of the
    input, in which the product is taken. Bytes and scales are kept as integers, so that `.to(dtype)` of a
    model, which casts all that is floating, leaves them what they are.
    """

    packed: Tensor
    scale: Tensor | None

    def __init__(self, weight: Packed, *, bias: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.kind = weight.kind
        self.register_buffer("packed", weight.rows)
        scale = None if weight.scale is None else weight.scale.float().contiguous().view(torch.int32)
        self.register_buffer("scale", scale)
        self.bias = nn.Parameter(torch.empty(self.out_features, device="meta")) if bias else None

    @property
    def weight(self) -> Tensor:
        """The numbers of the weight, (out, in), in float32, made anew at each call."""
        return self.weight_in(torch.float32)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The same numbers, rounded to a dtype."""
        scale = None if self.scale is None else self.scale.view(torch.float32)
        return unpacked(self.packed, self.kind, scale, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight_in(x.dtype), bias)

    def extra_repr(self) -> str:
        """The sizes and the format."""
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"
