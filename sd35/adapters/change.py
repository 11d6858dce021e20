"""What one update of a LoRA does to the weight, the bias and the output of one module."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weights.adapters import Update, matrix

from ..loras import Lora

Layer = Any
"""A module with a weight, and perhaps a bias: linear or of another kind, whole or in few bits."""


class Change(nn.Module):
    """One update, with its matrices as parameters: in the dtype of their file, cast where they are used.

    With the scale α / r of the file and the strength s of the caller:

        LoRA, LoHa, LoKr    W + s · (α / r) · D
        DoRA                m · V / ‖V‖ with V = W + s · (α / r) · D; the norm is a row's or a column's
                            (arXiv:2402.09353, equation 5)
        DoRA by LyCORIS     V · (s · (m / ‖V‖ - 1) + 1) with V = W + (α / r) · D

    W is the layer as its trainer saw it: for q, the rows of q alone. Gradients do not pass through the norm
    of a DoRA (its section 4.3).
    """

    def __init__(self, update: Update, strength: float) -> None:
        super().__init__()
        self.factors = nn.ParameterDict(
            {role: nn.Parameter(tensor, requires_grad=False) for role, tensor in update.tensors.items()}
        )
        self.update = replace(update, tensors={})
        self.strength = strength

    def forward(self, x: Tensor, base: Layer) -> Tensor:
        """What is added to the output of a linear layer.

        Args:
            x: its input, (..., in).
            base: the layer; only a DoRA looks at it.

        Returns:
            (..., out), in the dtype of `x`.
        """
        update = self.update
        total, bias = base.out_features, self.bias(x.dtype)  # asking the weight would unpack one in few bits
        if update.kind == "bias":
            out = x.new_zeros(*x.shape[:-1], update.rows[1] - update.rows[0])
        elif update.kind == "lora" and update.axis is None:
            inner = F.linear(x, self.factors["down"].to(x.dtype))
            out = F.linear(inner, self.factors["up"].to(x.dtype)) * (self.strength * update.scale)
        else:
            whole = None if bias is None else self._placed(bias, 0, total)
            return F.linear(x, self.weight(base.weight).to(x.dtype), whole)
        return self._placed(out if bias is None else out + bias, -1, total)

    def weight(self, base: Tensor) -> Tensor:
        """What is added to the weight of a module.

        Args:
            base: the weight, of any number of axes, the first being the output's.

        Returns:
            The same shape, in float32 at least.
        """
        update = self.update
        base = base.to(torch.promote_types(base.dtype, torch.float32))
        if update.kind == "bias":
            return torch.zeros_like(base)
        product = matrix(update.kind, dict(self.factors.items()), base.dtype)
        assert product is not None
        if update.axis is None:
            change = product * (self.strength * update.scale)
        else:
            change = self._dora(base.flatten(1), product)
        return self._placed(change, 0, len(base)).view_as(base)

    def _dora(self, base: Tensor, product: Tensor) -> Tensor:
        """A DoRA's W' - W on its rows, in the order of the file."""
        update = self.update
        first, stop = update.rows
        own = self._swapped(base[first:stop], 0)
        inside = 1.0 if update.outside else self.strength
        changed = own + inside * update.scale * product
        role = "magnitude" if "magnitude" in self.factors else "dora_scale"
        magnitude = self.factors[role].to(base.dtype)
        magnitude = magnitude.view(-1, 1) if update.axis == 0 else magnitude.view(1, -1)
        gain = magnitude / changed.norm(dim=1 - (update.axis or 0), keepdim=True).detach()
        if update.outside:
            gain = self.strength * (gain - 1) + 1
        return changed * gain - own

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """What is added to the bias, on the update's rows in the file's order; None where nothing is."""
        parts = []
        if "bias" in self.factors:
            parts.append(self.factors["bias"].to(dtype) * self.strength)
        if "up_bias" in self.factors:
            parts.append(self.factors["up_bias"].to(dtype) * (self.strength * self.update.scale))
        return sum(parts[1:], parts[0]) if parts else None

    def whole_bias(self, base: Tensor) -> Tensor:
        """What is added to a module's bias, of its shape, in float32 at least."""
        dtype = torch.promote_types(base.dtype, torch.float32)
        change = self.bias(dtype)
        return (
            base.new_zeros(base.shape, dtype=dtype) if change is None else self._placed(change, 0, len(base))
        )

    def norm(self, base: Layer) -> float:
        """The Frobenius norm of what is added to weight and bias together."""
        bias = self.bias(torch.float32)
        square = 0.0 if bias is None else float(bias.square().sum())
        if self.update.kind == "lora" and self.update.axis is None:
            up, down = (self.factors[role].float().flatten(1) for role in ("up", "down"))
            gram = float(((up.T @ up) * (down @ down.T)).sum())  # ‖up · down‖², without the big product
            square += max(gram, 0.0) * (self.strength * self.update.scale) ** 2
        elif self.update.kind != "bias":
            square += float(self.weight(base.weight).square().sum())
        return square**0.5

    def _swapped(self, values: Tensor, dim: int) -> Tensor:
        """The rows in the other of the two orders that files and models have."""
        return torch.cat(values.chunk(2, dim)[::-1], dim) if self.update.swap else values

    def _placed(self, values: Tensor, dim: int, total: int) -> Tensor:
        """Values on the update's rows as values on all rows of the module, zero elsewhere."""
        values = self._swapped(values, dim)
        first, stop = self.update.rows
        if (first, stop) == (0, total):
            return values
        around = (first, total - stop)
        return F.pad(values, around if dim == -1 or values.ndim == 1 else (0, 0, *around))


class Changes(nn.ModuleList):
    """All that one LoRA does to one module: one change, or one each for q, k and v."""

    def __init__(self, changes: Iterable[Change], lora: Lora) -> None:
        super().__init__(changes)
        self.lora = lora

    def rescale(self, scale: float) -> None:
        """Change its strength."""
        self.lora = replace(self.lora, scale=scale)
        for change in self:
            cast(Change, change).strength = scale

    def forward(self, x: Tensor, base: Layer) -> Tensor:
        """The sum of what they add to a linear layer's output."""
        first, *rest = self
        out = first(x, base)
        for change in rest:
            out = out + change(x, base)
        return out
