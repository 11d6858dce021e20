"""Reflow: train a flow anew on the pairs that it makes itself, so that its paths become straight.

Liu et al. 2022 (arXiv:2209.03003), section 2. A first flow is taught with data and noise drawn apart, whose
lines cross, so that its paths bend. Its own pairs, noise and where the flow ends from it, do not cross: what
is taught with them, `cfm_loss(velocity, data, noise=noise, ...)`, has the same ends and nearly straight
paths.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import FlowError
from .objective import cfm_loss
from .precision import as_float64, wide
from .show import shown
from .solvers.base import Velocity
from .solvers.runge_kutta import euler
from .solvers.table import solve


class Pairs(NamedTuple):
    """Noise and the data that a flow makes of it."""

    noise: Tensor
    """(B, *S)."""
    data: Tensor
    """(B, *S)."""

    def __repr__(self) -> str:
        return shown(self)


def reflow_pairs(
    velocity: Velocity, noises: Iterable[Tensor], sigmas: Tensor, solver: str = "euler", **options: Any
) -> Iterator[Pairs]:
    """Run a flow from each batch of noise to its end: what the next one is trained on.

    Args:
        velocity: of the flow, guided if it will be used so: guidance then becomes part of the next flow.
        noises: batches, (B, *S), of whatever the flow begins at.
        sigmas: falling, (steps + 1,).
        solver: a name in SOLVERS.
        options: of the solver.
    """
    for noise in noises:
        with torch.no_grad():
            yield Pairs(noise, solve(velocity, noise, sigmas, solver, **options).to(noise))


def straightness(velocity: Velocity, noise: Tensor, sigmas: Tensor) -> Tensor:
    """How far the paths of a flow are from straight lines run at constant speed: S, (B,), 0 if they are.

        S = ∫ ‖(x(1) - x(0)) - v(x(σ), σ)‖² dσ = ∫ ‖v‖² dσ - ‖x(1) - x(0)‖²        (Liu et al., section 2.2)

    Summed over the dimensions of a sample, along the flow's own paths as Euler follows them. The loss of a
    first flow is not S: it is mostly the spread of the pairs that it was taught with.

    Args:
        velocity: of the flow.
        noise: (B, *S), the states at `sigmas[0]`.
        sigmas: from 1 to 0 or back, (steps + 1,).

    Raises:
        FlowError: sigmas that do not go all the way; and as in `euler`.
    """
    if sorted([float(sigmas[0]), float(sigmas[-1])]) != [0.0, 1.0]:
        raise FlowError(
            f"straightness is measured from 1 to 0, got {float(sigmas[0]):g} to {float(sigmas[-1]):g}"
        )
    way = torch.zeros_like(as_float64(noise).flatten(1))
    squares = torch.zeros_like(way[:, 0])
    for step in euler(velocity, noise, sigmas):
        h, v = as_float64(step.sigma_next - step.sigma).abs(), as_float64(step.velocity).flatten(1)
        squares, way = squares + h * v.square().sum(1), way + h * v
    return (squares - way.square().sum(1)).clamp_min(0).to(wide(noise))


def first_step_loss(velocity: Velocity, noise: Tensor, data: Tensor) -> Tensor:
    """Distil a straight flow into one step: E ‖(noise - v(noise, 1)) - data‖² (Liu et al., section 2.2).

    It is `cfm_loss` at σ = 1 alone. Only after a reflow is there one end for each noise to be learned.

    Args:
        velocity: of the flow that is trained.
        noise: (B, *S).
        data: where the reflowed flow ends from it, (B, *S).
    """
    return cfm_loss(velocity, data, noise=noise, sigma=1.0)
