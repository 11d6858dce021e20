"""Rex: a Runge-Kutta method made reversible, on the exponential form of the flow (arXiv:2502.08834).

With γ = (1 - σ) / σ and y = x / σ the flow is dy/dγ = D, D = x - σ v being the denoised state. Two states are
coupled as McCallum and Foster do (arXiv:2410.11648), here with Euler's increments, h = γ' - γ:

    x'  = σ'/σ (ζ x + (1 - ζ) x̂) + σ' h D(x̂, σ)
    x̂' = σ'/σ x̂ + σ' h D(x', σ')                                  (x̂ = x at first)

For ζ = 1 x' is the plain Euler step of the velocity at x̂. Tableaus of higher order gain nothing here, as the
last intervals in γ are huge (Ralston's in 28 evaluations on a guided field 20 to 25 dB, Euler's 34 to 50). At
σ = 0 γ is infinite: the last step to it is Euler's, x' = x - σ v(x̂, σ), and leaves x̂ as it is, which can be
undone alike. The way up begins there, so there is none.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from torch import Tensor

from ..errors import FlowError
from ..path import rms
from .base import Step, Velocity, evaluate, prepare, watched
from .reversible import prepare_undo


@watched
def rex(velocity: Velocity, x: Tensor, sigmas: Tensor, *, zeta: float = 0.999) -> Iterator[Step]:
    """Rex with Euler's increments. Order 1; two evaluations a step, one in a last step to 0.

    Companion: x̂, as `twin`.

    Args:
        velocity: called as velocity(x, sigma), sigma being (B,).
        x: the state at `sigmas[0]`, (B, *S).
        sigmas: noise levels in [0, 1], falling, (steps + 1,).
        zeta: ζ, in [0.9, 1]: how strongly x holds on to itself. Undoing grows errors by 1 / ζ a step.

    Raises:
        FlowError: a zeta out of range, a table that rises; and as in `euler`.
    """
    x, sigmas = prepare(x, sigmas)
    levels = _checked(sigmas, zeta)

    def steps(x: Tensor) -> Iterator[Step]:
        twin = x
        for number, (sigma, sigma_next) in enumerate(pairwise(levels)):
            v = evaluate(velocity, twin, sigmas[number], number)
            if sigma_next == 0:
                x = x - sigma * v
            else:
                kept, drawn = _shares(sigma, sigma_next)
                x = kept * (zeta * x + (1 - zeta) * twin) + drawn * (twin - sigma * v)
                ahead = evaluate(velocity, x, sigmas[number + 1], number)
                twin = kept * twin + drawn * (x - sigma_next * ahead)
            yield Step(number, sigmas[number], sigmas[number + 1], v, x, {"twin": twin})

    return steps(x)


@watched
def undo_rex(
    velocity: Velocity, x: Tensor, companion: Mapping[str, Tensor], sigmas: Tensor, *, zeta: float = 0.999
) -> Iterator[Step]:
    """Run `rex` backward; see `undo_reversible_heun` for arguments and steps. The mismatch is x - x̂."""
    _checked(sigmas, zeta)
    x, sigmas, twin = prepare_undo(x, companion, sigmas, "twin")
    levels = sigmas.tolist()

    def steps(x: Tensor, twin: Tensor) -> Iterator[Step]:
        for number, (sigma, sigma_next) in reversed([*enumerate(pairwise(levels))]):
            if sigma_next == 0:
                v = evaluate(velocity, twin, sigmas[number], number)
                x = x + sigma * v
            else:
                kept, drawn = _shares(sigma, sigma_next)
                ahead = evaluate(velocity, x, sigmas[number + 1], number)
                twin = (twin - drawn * (x - sigma_next * ahead)) / kept
                v = evaluate(velocity, twin, sigmas[number], number)
                x = ((x - drawn * (twin - sigma * v)) / kept - (1 - zeta) * twin) / zeta
            mismatch = rms(twin - x) if number == 0 else None
            yield Step(number, sigmas[number + 1], sigmas[number], v, x, {"twin": twin}, mismatch=mismatch)

    return steps(x, twin)


def _shares(sigma: float, sigma_next: float) -> tuple[float, float]:
    """What a step keeps of the state, σ'/σ, and what it takes of the denoised one, σ' h = 1 - σ'/σ."""
    return sigma_next / sigma, 1 - sigma_next / sigma


def _checked(sigmas: Tensor, zeta: float) -> list[float]:
    if not 0.9 <= zeta <= 1:
        raise FlowError(f"zeta must lie in [0.9, 1], as undoing a step divides by it; got {zeta}")
    levels = sigmas.tolist()
    if levels[0] < levels[-1]:
        raise FlowError("rex works in 1 / sigma, from noise to data: sigmas must fall")
    return levels
