"""Muon: momentum whose every singular value is made 1 (https://kellerjordan.github.io/posts/muon).

Beside torch's: matrices of one shape are orthogonalised together, in a few large products, which a card
needs to be quick; a fused `qkv` is taken as the three matrices that it is; and the kernels of a
convolution are taken as matrices of outputs by inputs.
"""

from collections.abc import Mapping
from itertools import groupby

import torch
from torch import Tensor, nn

from .together import add_all

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the polynomial that drives singular values to about 1
ROUNDS = 5
MOMENTUM = 0.95
RMS = 0.2  # of a step at a learning rate of 1, about AdamW's, so that one learning rate fits both


class Muon:
    """The optimizer of the matrices between hidden layers.

    Args:
        parameters: by name, of two dimensions or of four.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        views = [view for name, parameter in parameters.items() for view in _matrices(name, parameter)]
        views.sort(key=_lying)
        self.groups = [list(group) for _, group in groupby(views, key=_lying)]
        self.momenta = [
            torch.zeros(len(group), *_lying(group[0]), device=group[0][0].device) for group in self.groups
        ]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Take one step from the gradients that are there."""
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            gradient = torch.stack([_lie(_part(parameter.grad, part)) for parameter, part in group])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonal(gradient.lerp(momentum, MOMENTUM))  # Nesterov's
            scale = rate * RMS * max(update.shape[-2:]) ** 0.5
            matrices = [_lie(_part(parameter, part)) for parameter, part in group]
            add_all(matrices, update.float(), scale=-scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """Newton-Schulz: (n, rows ≤ columns) with all singular values brought near 1, in bfloat16.

    X ← a X + (b A + c A²) X,   A = X Xᵀ
    """
    a, b, c = COEFFICIENTS
    x = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-12)).bfloat16()
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


Part = tuple[nn.Parameter, int | None]


def _matrices(name: str, parameter: nn.Parameter) -> list[Part]:
    """The parameter as one matrix (None), or as its three thirds."""
    return [(parameter, part) for part in range(3)] if ".qkv." in name else [(parameter, None)]


def _part(tensor: Tensor | None, part: int | None) -> Tensor:
    """A view of the matrix, two-dimensional."""
    assert tensor is not None
    matrix = tensor.view(len(tensor), -1)  # and not flatten, which copies where memory lies otherwise
    return matrix if part is None else matrix.chunk(3)[part]


def _stands_flat(matrix: Tensor) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


def _lie(matrix: Tensor) -> Tensor:
    return matrix if _stands_flat(matrix) else matrix.T


def _lying(entry: Part) -> tuple[int, int]:
    rows, columns = _part(*entry).shape
    return min(rows, columns), max(rows, columns)
