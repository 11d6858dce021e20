"""A stochastic solver that knows the probability of what it drew, as reinforcement learning asks for.

Flow-GRPO (Liu et al. 2025, arXiv:2505.05470), section 4.2. The SDE has the marginals of the ODE at every σ:

    dx = [v + g² / (2σ) · (x + (1 - σ) v)] dσ + g dw,    g = a · √(σ / (1 - σ))        (eq. 8, 9; σ falling)

x + (1 - σ) v is the noise that the velocity sees in x, so the bracket is v - g²/2 · ∇log p. Upward, the
sign of the second term turns. g² / σ = a² / (1 - σ) is finite at 0; at 1, where g is not, and at 0, where a
step would have no noise and so no density, g is taken from the other end of the step, as the authors' code
does at 1.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import FlowError
from .base import Step, Velocity, evaluate, prepare, watched


class Transition(NamedTuple):
    """The normal distribution of the state that a stochastic step ends in."""

    mean: Tensor
    """(B, *S)."""
    std: Tensor
    """(), the same for all."""

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density of `x` (B, *S), summed over a sample: (B,). Divide by its size for Flow-GRPO's."""
        dims = self.mean[0].numel()
        squares = ((x - self.mean) / self.std).flatten(1).square().sum(1)
        return -squares / 2 - dims * (self.std.log() + math.log(2 * math.pi) / 2)


def transition(
    velocity: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: float = 0.7
) -> Transition:
    """Where a stochastic step may end: its mean and deviation (Flow-GRPO, eq. 9).

    With a step's `x` kept, `transition(...).log_prob(x)` is its probability under a changed velocity.

    Args:
        velocity: v(x, sigma), (B, *S).
        x: the state at `sigma`, (B, *S).
        sigma: (), where the step begins.
        sigma_next: (), where it ends.
        noise_level: a, positive.
    """
    h = sigma_next - sigma
    # By `where`, as a condition in Python would wait for the device at each step.
    level = torch.where((sigma == 0) | (sigma == 1), sigma_next, sigma)
    single = (level == 0) | (level == 1)  # a step from one end to the other
    level = torch.where(single, (sigma + sigma_next) / 2, level)
    spread = noise_level**2 / (1 - level)
    noise = x + (1 - sigma) * velocity
    mean = x + h * velocity - h.abs() * spread / 2 * noise
    return Transition(mean, (spread * level * h.abs()).sqrt())


@watched
def sde(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | Sequence[torch.Generator],
    noise_level: float = 0.7,
) -> Iterator[Step]:
    """Follow the SDE with the ODE's marginals (Euler-Maruyama). Weak order 1; one evaluation a step.

    Every step adds noise, the last one too: the end is as noisy as the SDE is there, 0.006 on the reference
    table. `Step.log_prob` is the log-density of the step that was drawn.
    The order holds away from σ = 1, where g is infinite. A table that begins there leaves an error of about
    0.001 in the deviation of a Gaussian, which fades slowly with more steps, one that ends there 0.04.

    Args:
        velocity: called as velocity(x, sigma), sigma being (B,).
        x: the state at `sigmas[0]`, (B, *S).
        sigmas: noise levels in [0, 1], (steps + 1,), falling or rising.
        generator: draws the noise; or one for each sample, so that a sample does not depend on its batch.
        noise_level: a of Flow-GRPO, positive; it uses 0.7.

    Raises:
        FlowError: a noise level that is not positive, too few generators; and as in `euler`.
    """
    x, sigmas = prepare(x, sigmas)
    if not 0 < noise_level < math.inf:
        raise FlowError(
            f"noise_level must be positive, got {noise_level}; the ODE's solvers are those without noise"
        )
    if not isinstance(generator, torch.Generator) and len(generator) != len(x):
        raise FlowError(f"one generator, or one for each of {len(x)} samples; got {len(generator)}")

    def steps(x: Tensor) -> Iterator[Step]:
        for number, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            v = evaluate(velocity, x, sigma, number)
            ends = transition(v, x, sigma, sigma_next, noise_level)
            x = ends.mean + ends.std * normal(x, generator)
            # Detached, or the gradient of the log-density would be that of the drawn noise alone: zero.
            yield Step(number, sigma, sigma_next, v, x, log_prob=ends.log_prob(x.detach()))

    return steps(x)


def normal(like: Tensor, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise shaped as `like` (B, *S), from one generator or from one for each sample."""
    if isinstance(generator, torch.Generator):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(
            like
        )
    each = [
        torch.randn(x.shape, generator=g, dtype=x.dtype, device=g.device)
        for x, g in zip(like, generator, strict=True)
    ]
    return torch.stack(each).to(like)
