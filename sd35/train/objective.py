"""What is learned: the velocity of noisy latents, at drawn noise and noise levels."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from flow import cfm_loss, sample_sigmas
from textenc import TextEncoder

from ..noise import seeded
from .data import Batch
from .settings import Training

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""predict(x, sigma, context, pooled) -> velocity, as the MM-DiT itself."""
NOISE, LEVEL, FIXED = 3, 4, 5
"""What numbers are drawn for, beside the number of the batch."""
LossOf = Callable[[Predict, TextEncoder | None, int], Tensor]
"""loss_of(predict, CLIP encoders that are trained as well, number of the batch), with its own rows alone."""
VALIDATION_SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


class Draw(NamedTuple):
    """The chance in a batch."""

    noise: Tensor
    """Shaped as the latents."""
    sigma: Tensor
    """(B,)."""

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Draw":
        """The same on a device, with noise in this dtype."""
        return Draw(self.noise.to(device, dtype), self.sigma.to(device))


def draw(shape: torch.Size, training: Training, number: int) -> Draw:
    """The noise and the noise levels of a batch: on the CPU, by the seed and the batch's number alone."""
    seed = training.seed
    sigma = sample_sigmas(
        shape[0],
        seeded(seed, LEVEL, number),
        density=cast(Any, training.density),
        location=training.density_location,
        scale=training.density_scale,
        schedule_shift=training.schedule_shift,
        preset=cast(Any, training.density_preset),
    )
    return Draw(torch.randn(shape, generator=seeded(seed, NOISE, number)), sigma)


def velocity_loss(predict: Predict, batch: Batch, drawn: Draw, training: Training) -> Tensor:
    """Conditional flow matching on a batch: E w(σ) ‖v - (noise - latents)‖².

    Args:
        predict: the network; called with what is in the batch.
        batch: on the device of the network.
        drawn: likewise.
        training: weight and precondition of the loss.
    """
    return cfm_loss(
        lambda x, sigma: predict(x, sigma, batch.context, batch.pooled),
        batch.latents,
        noise=drawn.noise,
        sigma=drawn.sigma,
        weight=cast(Any, training.weight),
        precondition=training.precondition,
    )


@torch.no_grad()
def validation_losses(predict_of: Callable[[Batch], Predict], batches: Sequence[Batch]) -> dict[float, float]:
    """The mean squared error of the velocity at fixed noise levels with fixed noise, by level.

    The loss of training says little: most of it is the chance of sigma and noise. These losses are of one
    draw for good, so that they can be compared from step to step and from run to run.

    Args:
        predict_of: the network for a batch.
        batches: of any sizes, on the device of the network.
    """
    losses: dict[float, float] = {}
    for level in VALIDATION_SIGMAS:
        total = 0.0
        for number, batch in enumerate(batches):
            noise = torch.randn(batch.latents.shape, generator=seeded(0, FIXED, number))
            sigma = torch.full((len(noise),), level)
            drawn = Draw(noise, sigma).to(batch.latents.device)
            total += float(velocity_loss(predict_of(batch), batch, drawn, Training()))
        losses[level] = total / len(batches)
    return losses
