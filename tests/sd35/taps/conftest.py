"""A small transformer with random weights, alone and under guidance."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import flow
from mmdit import MMDiT, MMDiTConfig
from sd35.velocity import GuidedVelocity
from textenc import Encoding, Prompt

CONFIG = MMDiTConfig(
    dim=128, depth=3, num_heads=2, pos_embed_size=8, context_dim=24, pooled_dim=16, dual_blocks=(0,)
)
STEPS = 3


@pytest.fixture(scope="module")
def model() -> MMDiT:
    """A dual block, a plain one and the last; all parameters random, so that every path carries something."""
    generator = torch.Generator().manual_seed(0)
    model = MMDiT(CONFIG).requires_grad_(False).eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.normal_(std=tensor.shape[-1] ** -0.5, generator=generator)
    return model


@pytest.fixture(scope="session")
def inputs() -> Callable[[int], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Latents, sigma, context and pooled of two samples, from a seed."""

    def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return normal(2, 16, 8, 8), torch.rand(2, generator=generator), normal(2, 5, 24), normal(2, 16)

    return draw


@pytest.fixture(scope="session")
def generate() -> Callable[..., Tensor]:
    """Runs three Euler steps of a guided generation; the seed decides the prompt, never the noise."""

    def encoding(seed: int, length: int) -> Encoding:
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(1, length, 24, generator=generator)
        pooled = torch.randn(1, 16, generator=generator)
        return Encoding(context, pooled, (Prompt(str(seed)),), ((),), (), "reference")

    def run(
        model: MMDiT,
        prompt: int = 0,
        *,
        samples: int = 1,
        negative_length: int = 5,
        batch_size: int = 1,
        solver: str = "euler",
        guidance_scale: float = 4.0,
    ) -> Tensor:
        sigmas = flow.sigmas(STEPS)
        velocity = GuidedVelocity(
            model,
            [encoding(prompt, 5)],
            encoding(99, negative_length),
            guidance_scale,
            sigmas=sigmas,
            batch_size=batch_size,
        )
        noise = torch.randn(samples, 16, 8, 8, generator=torch.Generator().manual_seed(7))
        return flow.solve(velocity, noise, sigmas, solver)

    return run


@pytest.fixture(autouse=True)
def _leaves_nothing(model: MMDiT):
    """Whatever a test does, no hook stays on the model."""
    yield
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
