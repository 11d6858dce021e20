import torch
from torch import nn

from sd35.noise import seeded
from sd35.train.muon import MOMENTUM, RMS, Muon, orthogonal


def test_singular_values_come_near_one() -> None:
    matrices = torch.randn(3, 20, 50, generator=seeded(0))
    values = torch.linalg.svdvals(orthogonal(matrices).float())
    assert 0.6 < values.min() < values.max() < 1.3


def test_each_matrix_is_orthogonalised_by_itself() -> None:
    """A fused qkv is three matrices, a convolution's kernel is one, and a tall matrix lies on its side."""
    generator = seeded(0)
    shapes = {
        "attn.qkv.weight": (48, 16),
        "fc2.weight": (16, 64),
        "fc1.weight": (64, 16),
        "conv": (16, 4, 2, 2),
    }
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    gradients = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, parameter in parameters.items():
        parameter.grad = gradients[name]
    Muon(parameters).step(0.1)

    def expected(gradient: torch.Tensor) -> torch.Tensor:
        matrix = gradient if gradient.shape[0] <= gradient.shape[1] else gradient.T
        momentum = (1 - MOMENTUM) * matrix
        update = orthogonal(matrix.lerp(momentum, MOMENTUM)[None])[0].float()
        step = -0.1 * RMS * max(matrix.shape) ** 0.5 * update
        return step if gradient.shape[0] <= gradient.shape[1] else step.T

    for name, parameter in parameters.items():
        parts = parameter.detach().flatten(1).chunk(3 if "qkv" in name else 1)
        their = gradients[name].flatten(1).chunk(len(parts))
        for part, gradient in zip(parts, their, strict=True):
            assert torch.allclose(part, expected(gradient), atol=2e-3), name
