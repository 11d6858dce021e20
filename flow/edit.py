"""Editing: from data under one prompt to data under another, as generators over velocities.

FlowEdit        Kulikov et al. 2024, arXiv:2412.08629, algorithm 1
RF-Inversion    Rout et al. 2024, arXiv:2410.10792, eq. 8 and 15, algorithms 1 and 2
DirectEdit      arXiv:2605.02417; the formulas here are derived from its description
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .errors import FlowError
from .path import interpolate, per_sample
from .precision import wide
from .solvers.base import Step, Velocity, Watched, evaluate, prepare
from .solvers.stochastic import normal


def flow_edit(
    source: Velocity,
    target: Velocity,
    data: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | Sequence[torch.Generator],
    average: int = 1,
    plain_steps: int = 0,
) -> Iterator[Step]:
    """Edit without inverting: follow the difference of two velocities, each at the data's own noise level.

        Z_source = (1 - σ) data + σ ε;    Z_target = z + Z_source - data;    ε ~ N(0, 1), fresh
        z ← z + h · mean(v_target(Z_target, σ) - v_source(Z_source, σ))        z = data at first

    Two evaluations a step and drawn ε. How much may change is set by where the table begins: leave out the
    first steps, `sigmas[start_step(...):]`, to keep the layout (the paper's n_max). In the last
    `plain_steps` (its n_min) the target's flow alone is followed, from Z_target, with one evaluation.

    Args:
        source: the velocity that describes `data`.
        target: the velocity wanted.
        data: (B, *S).
        sigmas: falling, (steps + 1,), from at most 1.
        generator: draws ε; or one for each sample.
        average: how many ε a step averages over (n_avg).
        plain_steps: see above.

    Yields:
        Steps whose `x` is z; within the plain steps, the state of the target's flow.

    Raises:
        FlowError: sigmas that rise, counts out of range; and as in `euler`.
    """
    data, sigmas = prepare(data, sigmas)
    if sigmas[0] < sigmas[-1]:
        raise FlowError(
            f"sigmas must fall, from noise to data; got {float(sigmas[0]):g} to {float(sigmas[-1]):g}"
        )
    count = len(sigmas) - 1
    if average < 1 or not 0 <= plain_steps <= count:
        raise FlowError(
            f"average must be at least 1 and plain_steps 0 ... {count}, got {average} and {plain_steps}"
        )

    source, target = watches = Watched(source), Watched(target)

    def steps(x: Tensor) -> Iterator[Step]:
        for number, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            if number < count - plain_steps:
                v = torch.zeros_like(x)
                for _ in range(average):
                    noised = interpolate(data, normal(data, generator), sigma)
                    ahead = evaluate(target, x + noised - data, sigma, number)
                    v = v + (ahead - evaluate(source, noised, sigma, number)) / average
            else:
                if number == count - plain_steps:
                    x = x + interpolate(data, normal(data, generator), sigma) - data
                v = evaluate(target, x, sigma, number)
            x = x + (sigma_next - sigma) * v
            yield Step(number, sigma, sigma_next, v, x)
        for watch in watches:
            watch.settle()

    return steps(data)


def direct_edit(source: Velocity, target: Velocity, data: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """Edit along a recording of the way up: no inverse, but of the source's own flow it returns the data.

        up      z_i = z_{i+1} - h_i v_source(z_{i+1}, σ_i);    d_i = z_{i+1} - z_i is kept;    z_N = data
        down    x_{i+1} = x_i + h_i v_target(x_i + d_i, σ_i);    x_0 = z_0

    Where the target is the source, x_i + d_i is z_{i+1} itself, and every step of the way down is that of the
    way up: x_N is the data, whatever the way up was worth. Two evaluations a step, and all d_i in memory.

    Args:
        source: the velocity that describes `data`.
        target: the velocity wanted.
        data: (B, *S).
        sigmas: falling, (steps + 1,); leave out the first steps to keep the layout.

    Raises:
        FlowError: sigmas that rise; and as in `euler`.
    """
    data, sigmas = prepare(data, sigmas)
    if sigmas[0] < sigmas[-1]:
        raise FlowError(
            f"sigmas must fall, from noise to data; got {float(sigmas[0]):g} to {float(sigmas[-1]):g}"
        )
    source, target = watches = Watched(source), Watched(target)

    def steps(z: Tensor) -> Iterator[Step]:
        ways = list(enumerate(pairwise(sigmas)))
        kept: list[Tensor] = []
        for number, (sigma, sigma_next) in reversed(ways):
            before = z - (sigma_next - sigma) * evaluate(source, z, sigma, number)
            kept.append(z - before)
            z = before
        for number, (sigma, sigma_next) in ways:
            v = evaluate(target, z + kept.pop(), sigma, number)
            z = z + (sigma_next - sigma) * v
            yield Step(number, sigma, sigma_next, v, z)
        for watch in watches:
            watch.settle()

    return steps(data)


def toward_noise(velocity: Velocity, noise: Tensor, strength: float = 0.5) -> Velocity:
    """RF-Inversion's controlled inversion (eq. 8): bend the way up to end near a chosen typical noise.

        v ← v + γ · ((noise - x) / (1 - σ) - v)

    Run it with any solver over rising sigmas. With γ = 1 it goes straight to `noise` and forgets the data.

    Args:
        velocity: of the source, usually of an empty prompt.
        noise: where to, (B, *S).
        strength: γ, in [0, 1]; the paper's is 0.5.

    Raises:
        FlowError: a strength out of range.
    """
    _check_strength(strength)

    def controlled(x: Tensor, sigma: Tensor) -> Tensor:
        v = wide(velocity(x, sigma))
        left = per_sample(1 - sigma, v)
        straight = (noise.to(v) - x) / left.clamp_min(torch.finfo(v.dtype).tiny)
        return torch.where(left > 0, v + strength * (straight - v), v)

    return controlled


def toward_data(
    velocity: Velocity, data: Tensor, strength: float, interval: tuple[float, float] = (0.0, 1.0)
) -> Velocity:
    """RF-Inversion's controlled generation (eq. 15): bend the way down so that it stays near given data.

        v ← v + η · ((x - data) / σ - v)        within the interval

    Run it with any solver over falling sigmas, from the noise that `toward_noise` found.

    Args:
        velocity: of the edit's prompt.
        data: what to stay near, (B, *S).
        strength: η, in [0, 1]; 1 returns to `data`.
        interval: control where low ≤ σ ≤ high only. The paper controls early steps, to keep the layout.

    Raises:
        FlowError: a strength or an interval out of range.
    """
    _check_strength(strength)
    low, high = interval
    if not 0 <= low < high <= 1:
        raise FlowError(f"interval must be (low, high) within [0, 1], got {interval}")

    def controlled(x: Tensor, sigma: Tensor) -> Tensor:
        v = wide(velocity(x, sigma))
        level = per_sample(sigma, v)
        straight = (x - data.to(v)) / level.clamp_min(torch.finfo(v.dtype).tiny)
        inside = (level >= low) & (level <= high) & (level > 0)
        return torch.where(inside, v + strength * (straight - v), v)

    return controlled


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise FlowError(f"strength must lie in [0, 1], got {strength}")
