"""Methods that remember: order 2 with one evaluation a step, by using the velocity of the step before.

None looks at σ = 0 on the way down. The last step of the reference tables, from 0.0089 to 0, is twelve times
shorter than the one before, and on the way up it comes first; formulas here hold for any ratio of steps.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import Tensor

from .base import Step, Velocity, evaluate, prepare, watched


@watched
def ab2(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """Adams-Bashforth for unequal steps. Order 2; one evaluation a step.

        x ← x + h · (v + h / (2 h₋) · (v - v₋))        (Hairer, Nørsett & Wanner I, III.5)

    v₋ and h₋ are the velocity and the length of the step before; the first step is Euler's.
    """
    x, sigmas = prepare(x, sigmas)

    def steps(x: Tensor) -> Iterator[Step]:
        v_before, h_before = None, sigmas[0]
        for number, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            h = sigma_next - sigma
            v = evaluate(velocity, x, sigma, number)
            slope = v if v_before is None else v + h / (2 * h_before) * (v - v_before)
            v_before, h_before = v, h
            x = x + h * slope
            yield Step(number, sigma, sigma_next, v, x)

    return steps(x)


@watched
def fireflow(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """Midpoint, reaching the middle with the last step's middle velocity (arXiv:2412.07517, algorithm 1).

        u ← v(x + h/2 · u, σ + h/2);    x ← x + h · u

    Order 2; one evaluation a step, and one more at the start, u = v(x, σ).
    """
    x, sigmas = prepare(x, sigmas)

    def steps(x: Tensor) -> Iterator[Step]:
        u = evaluate(velocity, x, sigmas[0], 0)
        for number, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            h = sigma_next - sigma
            u = evaluate(velocity, x + h / 2 * u, sigma + h / 2, number)
            x = x + h * u
            yield Step(number, sigma, sigma_next, u, x)

    return steps(x)


@watched
def dpmpp_2m(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """DPM-Solver++(2M) as Stability's code runs it, in -log σ. Order 2 away from 0; one evaluation a step.

    That is the time of a variance-exploding diffusion, not of a rectified flow (`flow_dpmpp_2m` has the
    flow's own), and the last step but one of the reference tables extrapolates by more than 3 in it, so that
    it often ends farther from the solution of the ODE than Euler. It is here because SD3.5-medium and -large
    are sampled with it by default.
    """
    return _data_prediction(lambda sigma: -_log(sigma), velocity, x, sigmas)


@watched
def flow_dpmpp_2m(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """DPM-Solver++(2M) in the log-SNR of the flow, log((1 - σ) / σ), as diffusers runs it (use_flow_sigmas).

    Order 2 away from 0 and 1; one evaluation a step.
    """
    return _data_prediction(lambda sigma: _log(1 - sigma) - _log(sigma), velocity, x, sigmas)


def _data_prediction(
    time: Callable[[float], float], velocity: Velocity, x: Tensor, sigmas: Tensor
) -> Iterator[Step]:
    """DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2) in a time λ that is a function of σ.

        D' = D + (λ' - λ) / (2 (λ - λ₋)) · (D - D₋);    x' = σ'/σ · x + (1 - σ'/σ) · D'

    D = x - σ v is the denoised state and ₋ marks the step before. With D in place of D' the step is Euler's,
    for any λ; so the correction is added to an Euler step, and left out where a λ is infinite (at σ = 0,
    for the flow also at 1), as both references do there.
    """
    x, sigmas = prepare(x, sigmas)
    times = [time(sigma) for sigma in sigmas.tolist()]

    def steps(x: Tensor) -> Iterator[Step]:
        before = x
        for number, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            v = evaluate(velocity, x, sigma, number)
            denoised = x - sigma * v
            x = x + (sigma_next - sigma) * v
            λ_before, λ, λ_next = times[max(number - 1, 0)], times[number], times[number + 1]
            if number > 0 and all(map(math.isfinite, (λ_before, λ, λ_next))):
                x = x + (1 - sigma_next / sigma) * (λ_next - λ) / (2 * (λ - λ_before)) * (denoised - before)
            before = denoised
            yield Step(number, sigma, sigma_next, v, x)

    return steps(x)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
