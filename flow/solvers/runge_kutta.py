"""Runge-Kutta methods: each step starts afresh from x alone, x' = x + h · slope(x).

Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, chapter II. Networks are not trained at
σ = 0, so no method here looks there: where the last step ends at 0, those with a stage at its end take
another scheme for that step, chosen so that the order of the whole stays.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType

from torch import Tensor

from .base import Step, Velocity, evaluate, prepare, watched

Slope = Callable[[Velocity, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""slope(velocity, x, sigma, sigma_next, number): the velocity at the start, and the mean one of the step."""


@watched
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
    return _steps("euler", velocity, x, sigmas)


@watched
def midpoint(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """Take the velocity from the middle of each step. Order 2; two evaluations a step.

        x ← x + h · v(x + h/2 · v(x, σ), σ + h/2)

    RF-Solver (arXiv:2411.04746, eq. 9), with its derivative taken over half a step, is this same method.
    """
    return _steps("midpoint", velocity, x, sigmas)


@watched
def heun(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """Average the velocities at both ends of a step. Order 2; two evaluations a step.

        x ← x + h/2 · (v + v'),    v' = v(x + h · v, σ')        (EDM, arXiv:2206.00364, algorithm 1)

    A step that ends at σ = 0 is a midpoint step.
    """
    return _steps("heun", velocity, x, sigmas)


@watched
def rk4(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """The classical method. Order 4; four evaluations a step.

        x ← x + h/6 · (k₁ + 2 k₂ + 2 k₃ + k₄)

    A step that ends at σ = 0 is one of Ralston's third-order method, three evaluations.
    """
    return _steps("rk4", velocity, x, sigmas)


def _steps(solver: str, velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    x, sigmas = prepare(x, sigmas)
    slopes = [slope_of(solver, sigma_next) for sigma_next in sigmas[1:].tolist()]

    def steps(x: Tensor) -> Iterator[Step]:  # apart, so that the check above runs at the call
        for number, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            v, mean = slopes[number](velocity, x, sigma, sigma_next, number)
            x = x + (sigma_next - sigma) * mean
            yield Step(number, sigma, sigma_next, v, x)

    return steps(x)


def euler_slope(
    velocity: Velocity, x: Tensor, sigma: Tensor, sigma_next: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """The velocity at the start, for the whole step."""
    v = evaluate(velocity, x, sigma, number)
    return v, v


def midpoint_slope(
    velocity: Velocity, x: Tensor, sigma: Tensor, sigma_next: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """The velocity in the middle, reached in a straight line."""
    half = (sigma_next - sigma) / 2
    v = evaluate(velocity, x, sigma, number)
    return v, evaluate(velocity, x + half * v, sigma + half, number)


def heun_slope(
    velocity: Velocity, x: Tensor, sigma: Tensor, sigma_next: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """The mean of the velocities at both ends."""
    v = evaluate(velocity, x, sigma, number)
    return v, (v + evaluate(velocity, x + (sigma_next - sigma) * v, sigma_next, number)) / 2


def rk4_slope(
    velocity: Velocity, x: Tensor, sigma: Tensor, sigma_next: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """Simpson's mean of the start, the middle twice, and the end."""
    h = sigma_next - sigma
    k1 = evaluate(velocity, x, sigma, number)
    k2 = evaluate(velocity, x + h / 2 * k1, sigma + h / 2, number)
    k3 = evaluate(velocity, x + h / 2 * k2, sigma + h / 2, number)
    k4 = evaluate(velocity, x + h * k3, sigma_next, number)
    return k1, (k1 + 2 * k2 + 2 * k3 + k4) / 6


def ralston_slope(
    velocity: Velocity, x: Tensor, sigma: Tensor, sigma_next: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """Ralston 1962, order 3: one step of local error h⁴ leaves the order of a run of rk4 at 4."""
    h = sigma_next - sigma
    k1 = evaluate(velocity, x, sigma, number)
    k2 = evaluate(velocity, x + h / 2 * k1, sigma + h / 2, number)
    k3 = evaluate(velocity, x + 3 * h / 4 * k2, sigma + 3 * h / 4, number)
    return k1, (2 * k1 + 3 * k2 + 4 * k3) / 9


SLOPES: Mapping[str, Slope] = MappingProxyType(
    {"euler": euler_slope, "midpoint": midpoint_slope, "heun": heun_slope, "rk4": rk4_slope}
)
"""The one-step methods, whose steps can be inverted from x alone by solving for where they began."""
INTO_ZERO: Mapping[str, Slope] = MappingProxyType({"heun": midpoint_slope, "rk4": ralston_slope})
"""What takes the place of those that look at the end of a step, where that is σ = 0."""


def slope_of(solver: str, sigma_next: float) -> Slope:
    """The slope of a one-step method for a step that ends at `sigma_next`."""
    return INTO_ZERO.get(solver, SLOPES[solver]) if sigma_next == 0 else SLOPES[solver]
