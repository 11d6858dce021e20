"""What a user's own quantiser may put in the places of linear layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """A linear layer in 8 bits, with a scale for each row.

    Args:
        linear: the layer.
        name: of the integers. Some quantisers keep them where the weight was, others do not.
    """

    def __init__(self, linear: nn.Linear, name: str) -> None:
        super().__init__()
        self.name, weight = name, linear.weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer(name, (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.to(linear.weight.dtype))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, getattr(self, self.name).to(x.dtype) * self.scale.to(x.dtype), self.bias)


def in_eight_bits(module: nn.Module, name: str = "packed") -> nn.Module:
    """Replace every linear layer of a module."""
    paths = [path for path, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    assert paths
    for path in paths:
        module.set_submodule(path, Int8Linear(module.get_submodule(path), name))  # pyright: ignore[reportArgumentType]
    return module
