"""What is learned: the velocity of noisy latents, at drawn noise and noise levels."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from flow import cfm_loss, interpolate, sample_sigmas

from ..noise import seeded
from .data import Batch
from .settings import Training

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""predict(x, sigma, context, pooled) -> velocity, as the MM-DiT itself."""
NOISE, LEVEL, FIXED = 3, 4, 5
"""What numbers are drawn for, beside the number of the batch."""
VALIDATION_SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


class Draw(NamedTuple):
    """The chance in a batch."""

    noise: Tensor
    """Shaped as the latents."""
    sigma: Tensor
    """(B,)."""

    def to(self, device: torch.device) -> "Draw":
        """The same on a device."""
        return Draw(self.noise.to(device), self.sigma.to(device))


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


def velocity_loss(
    predict: Predict,
    batch: Batch,
    drawn: Draw,
    training: Training,
    *,
    prior: int = 0,
    prior_weight: float = 1.0,
) -> Tensor:
    """Conditional flow matching on a batch, with prior preservation where its last rows are class pictures.

        E w(σ) ‖v - (noise - latents)‖²  +  prior_weight · the same of the class pictures

    Two means and not one, as DreamBooth (arXiv:2208.12242, section 3.2) has it. The network is called once.

    Args:
        predict: the network; called with what is in the batch.
        batch: on the device of the network.
        drawn: likewise.
        training: weight and precondition of the loss.
        prior: how many rows, at the end, are class pictures.
        prior_weight: of their mean.
    """
    x = interpolate(batch.latents, drawn.noise, drawn.sigma)
    velocity = predict(x, drawn.sigma, batch.context, batch.pooled)

    def mean(rows: slice) -> Tensor:
        return cfm_loss(
            lambda _, __: velocity[rows],
            batch.latents[rows],
            noise=drawn.noise[rows],
            sigma=drawn.sigma[rows],
            weight=cast(Any, training.weight),
            precondition=training.precondition,
        )

    if not prior:
        return mean(slice(None))
    first = len(velocity) - prior
    return mean(slice(first)) + prior_weight * mean(slice(first, None))


@torch.no_grad()
def validation_losses(predict: Predict, batches: list[Batch], device: torch.device) -> dict[float, float]:
    """The mean squared error of the velocity at fixed noise levels with fixed noise, by level.

    The loss of training says little: most of it is the chance of sigma and noise. These losses are of one
    draw for good, so that they can be compared from step to step and from run to run.

    Args:
        predict: the network.
        batches: of any sizes.
        device: of the network.
    """
    losses: dict[float, float] = {}
    for level in VALIDATION_SIGMAS:
        total = 0.0
        for number, batch in enumerate(batches):
            latents = batch.latents.to(device)
            noise = torch.randn(latents.shape, generator=seeded(0, FIXED, number)).to(device)
            context, pooled = batch.context.to(device), batch.pooled.to(device)
            loss = cfm_loss(
                lambda x, sigma, context=context, pooled=pooled: predict(x, sigma, context, pooled),
                latents,
                noise=noise,
                sigma=level,
            )
            total += float(loss)
        losses[level] = total / len(batches)
    return losses


def on(device: torch.device, batch: Batch) -> Batch:
    """A batch on a device."""
    latents, context, pooled = (tensor.to(device) for tensor in batch[:3])
    return batch._replace(latents=latents, context=context, pooled=pooled)
