"""A linear layer whose product is taken in 8-bit floats, for cards that multiply those twice as fast."""

import torch
from torch import Tensor, nn

from .linear import PackedLinear
from .value import STORED, Packed
from .write import rounded

FP8 = STORED["F8_E4M3"]
LARGEST = torch.finfo(FP8).max
ACCUMULATED = torch.bfloat16
"""What cards give of a product whose rows have scales."""


def fp8_product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The product x Wᵀ + b, with the rows of x rounded to 8-bit floats by a scale each.

    Args:
        x: (rows, in), of 16 bits.
        weight: (out, in), 8-bit floats.
        scale: (out, 1), float32: what each row of the weight is multiplied by.
        bias: (out,), or None.

    Returns:
        (rows, out), in the dtype of `x`, of which bfloat16's 8 bits are right.
    """
    own = x.abs().amax(dim=-1, keepdim=True).float().clamp_min(1e-12) / LARGEST  # (rows, 1)
    rows = (x / own).to(FP8)
    bias = None if bias is None else bias.to(ACCUMULATED)
    multiply = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]  (torch has no other name for it)
    options = {"bias": bias, "out_dtype": ACCUMULATED, "use_fast_accum": True}
    out = multiply(rows, weight.t(), own, scale.t(), **options)
    return out.to(x.dtype)


class Fp8Linear(PackedLinear):
    """The product as `fp8_product` takes it; of float32 inputs in float32, of the rounded weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if x.itemsize > 2:
            return super().forward(x)
        assert self.scale is not None
        scale = self.scale.view(torch.float32)
        return fp8_product(x.flatten(0, -2), self.packed.view(FP8), scale, self.bias).unflatten(
            0, x.shape[:-1]
        )


def as_fp8(layer: nn.Module) -> Fp8Linear:
    """The layer that takes a linear layer's product in 8-bit floats.

    A weight that is stored in them stays as it is, but for one scale for all, which becomes one a row.
    """
    assert isinstance(layer, nn.Linear | PackedLinear)
    if isinstance(layer, PackedLinear) and layer.kind == "F8_E4M3":
        scale = torch.ones(()) if layer.scale is None else layer.scale.view(torch.float32)
        each = scale.to(layer.packed.device).expand(layer.out_features, 1)
        weight = Packed(layer.kind, layer.packed, (layer.out_features, layer.in_features), each)
    else:
        weight = rounded(layer.weight, "fp8")
    made = Fp8Linear(weight, bias=layer.bias is not None)
    made.bias = layer.bias
    return made.train(layer.training)
