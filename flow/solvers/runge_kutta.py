"""Runge-Kutta methods: each step starts afresh from x alone.

Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, chapter II.
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from .base import Step, Velocity, evaluate, prepare


def euler(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """Follow the ODE from `sigmas[0]` to `sigmas[-1]` in straight lines.

        x ← x + h · v(x, σ)        order 1; one evaluation a step

    Steps are yielded as they are taken, so a caller may watch, stop early or change course;
    `last(euler(...))` runs to the end. Gradients follow the caller's grad mode. All solvers share this.

    Args:
        velocity: called as velocity(x, sigma), sigma being (B,).
        x: the state at `sigmas[0]`, (B, *S). Kept in float32 or better, whatever the velocity's dtype.
        sigmas: noise levels in [0, 1], (steps + 1,), falling to make data, rising to find noise.

    Raises:
        FlowError: at the call, if `x` or `sigmas` is unfit (see `base.prepare`); later, if a velocity has the
            wrong shape or is not finite.
    """
    x, sigmas = prepare(x, sigmas)

    def steps(x: Tensor) -> Iterator[Step]:  # apart, so that the check above runs at the call
        for number, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            v = evaluate(velocity, x, sigma, number)
            x = x + (sigma_next - sigma) * v
            yield Step(number, sigma, sigma_next, v, x)

    return steps(x)
