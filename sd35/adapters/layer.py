"""The modules that stand in a layer's place while a LoRA is on it."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from .change import Change, Changes, Layer


class Adapted(nn.Module):
    """A layer, `base`, and the LoRAs beside it, `loras`, by name.

    The whole, the base and each LoRA have a path of their own, so that a tap sees them apart. What a DoRA
    changes is computed from the layer as it was before any LoRA, so that their order does not matter.
    """

    base: nn.Module

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.loras = nn.ModuleDict()

    @property
    def weight(self) -> Tensor:
        """The weight with every update in it, for code that reads a layer's weight and does not call it."""
        return changed(self.base, origin(self.base), self.changes())["weight"]

    @property
    def bias(self) -> Tensor | None:
        """The bias with every update in it."""
        return changed(self.base, origin(self.base), self.changes()).get("bias")

    def changes(self) -> list[Change]:
        """Every update of every LoRA."""
        return [cast(Change, change) for own in self.loras.values() for change in cast(Changes, own)]


class AdaptedLinear(Adapted):
    """A linear layer whose output every LoRA adds to: the big weight is not touched."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        out, unchanged = self.base(x), origin(self.base)
        for lora in self.loras.values():
            out = out + lora(x, unchanged)
        return out


class AdaptedWeights(Adapted):
    """A convolution, a norm or a table: it runs with weights that are summed for the call."""

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        weights = changed(self.base, origin(self.base), self.changes())
        return torch.func.functional_call(self.base, weights, (x,))


@dataclass
class Kept:
    """What a merged layer was, and what was merged into it."""

    base: Layer
    loras: dict[str, Changes] = field(default_factory=dict)


def adapted(layer: nn.Module) -> Adapted:
    """The module to put in a layer's place so that LoRAs can be added beside it."""
    is_linear = isinstance(layer, nn.Linear) or hasattr(layer, "in_features")
    return AdaptedLinear(layer) if is_linear else AdaptedWeights(layer)


def base_of(layer: nn.Module) -> Layer:
    """What LoRAs stand beside; a layer without any is its own base."""
    return layer.base if isinstance(layer, Adapted) else layer


def origin(layer: nn.Module) -> Layer:
    """A layer as it was before anything was merged into it."""
    kept: Kept | None = getattr(layer, "kept", None)
    return layer if kept is None else kept.base


def merged(base: Layer, loras: Mapping[str, Changes], dtype: torch.dtype) -> nn.Module:
    """A layer with updates folded into its weights. It keeps the base itself, not a copy.

    Args:
        base: the layer as it was.
        loras: name to what is folded in.
        dtype: of the new weight where the base holds it in few bits.
    """
    weights = changed(base, base, [cast(Change, each) for own in loras.values() for each in own])
    if "weight" in dict(base.named_parameters(recurse=False)):
        layer: Layer = copy.copy(base)
        for key, value in vars(base).items():
            if isinstance(value, dict):  # its parameters and hooks: a shallow copy would share them
                vars(layer)[key] = value.copy()
    else:
        rows, columns = base.weight.shape
        layer = nn.Linear(columns, rows, bias="bias" in weights, device="meta")
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    for name, tensor in weights.items():
        setattr(layer, name, nn.Parameter(tensor, requires_grad=False))
    layer.kept = Kept(base, dict(loras))
    return layer.train(base.training)


def changed(layer: Layer, base: Layer, changes: Iterable[Change]) -> dict[str, Tensor]:
    """A layer's weight and bias with updates in them, in the layer's own dtypes.

    Args:
        layer: what the updates are added to.
        base: what they are computed from.
        changes: the updates.
    """
    changes = list(changes)
    weight, bias = layer.weight, getattr(layer, "bias", None)
    wide = sum((change.weight(base.weight) for change in changes), weight.new_zeros(()))
    result = {"weight": (weight.to(torch.promote_types(weight.dtype, torch.float32)) + wide).to(weight.dtype)}
    if bias is not None:
        wide = sum((change.whole_bias(bias) for change in changes), bias.new_zeros(()))
        result["bias"] = (bias.to(torch.promote_types(bias.dtype, torch.float32)) + wide).to(bias.dtype)
    return result
