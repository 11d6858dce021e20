"""Two-step schemes that can be run backward: a state is a sum of the two before it and a velocity between.

    BDIA       Zhang et al. 2023, arXiv:2307.10829
    O-BELM     Wang et al. 2024, arXiv:2410.07273

`reversible` says what such pairs of a solver and its undoing have in common.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..errors import FlowError
from ..path import rms
from .base import Step, Velocity, evaluate, prepare, watched
from .reversible import prepare_undo


@watched
def bdia(velocity: Velocity, x: Tensor, sigmas: Tensor, *, gamma: float = 0.96) -> Iterator[Step]:
    """Bidirectional integration: a step forward from x, and as much as γ of the error of one backward.

        x' = γ x₋ + (1 - γ) x + (h + γ h₋) v(x, σ)        (x₋, h₋: the state and the step before)

    Order 2 at γ = 1 where neighbouring steps are alike; below, order 1. One evaluation a step, never at the
    end. The first step is Euler's. Companion: x₋, as `before`. It is here because it is published and used.
    It is often further from the flow than Euler's method: on guided mixtures 28, 38 and 50 dB in 14, 28 and
    56 steps, Euler 35, 39 and 44. `benchmarks/inversion.py --tables forward` prints the same of a network.

    Args:
        velocity: called as velocity(x, sigma), sigma being (B,).
        x: the state at `sigmas[0]`, (B, *S).
        sigmas: noise levels in [0, 1], (steps + 1,).
        gamma: γ, in [0.9, 1]. Undoing grows rounding errors by 1 / γ a step, so that small ones diverge.

    Raises:
        FlowError: a gamma out of range; and as in `euler`.
    """
    check_gamma(gamma)
    x, sigmas = prepare(x, sigmas)
    return _two_step(velocity, x, sigmas, torch.full_like(sigmas[2:], gamma))


@watched
def undo_bdia(
    velocity: Velocity, x: Tensor, companion: Mapping[str, Tensor], sigmas: Tensor, *, gamma: float = 0.96
) -> Iterator[Step]:
    """Run `bdia` backward; see `undo_reversible_heun` for arguments and steps.

    The last evaluation serves the mismatch alone: how far Euler's first step, taken again, ends from where it
    ended in the generation.
    """
    check_gamma(gamma)
    x, sigmas, before = prepare_undo(x, companion, sigmas, "before")
    return _undo_two_step(velocity, x, before, sigmas, torch.full_like(sigmas[2:], gamma))


def check_gamma(gamma: float) -> None:
    """Raise FlowError unless gamma lies in [0.9, 1]."""
    if not 0.9 <= gamma <= 1:
        raise FlowError(f"gamma must lie in [0.9, 1], as undoing a step divides by it; got {gamma}")


@watched
def obelm(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """O-BELM: the two-step scheme of `bdia` with the γ that cancels the error of second order, at most 1.

        γ = (h / h₋)², but at most 1 and at least 1/4

    Order 2 where γ is not clipped. As published it never is. Then the scheme is unstable where steps grow, as
    those of the reference tables do, and undoing loses digits where a step is much shorter than the one
    before, as their last is. One evaluation a step, never at the end. Companion: x₋, as `before`.
    """
    x, sigmas = prepare(x, sigmas)
    return _two_step(velocity, x, sigmas, _balance(sigmas))


@watched
def undo_obelm(
    velocity: Velocity, x: Tensor, companion: Mapping[str, Tensor], sigmas: Tensor
) -> Iterator[Step]:
    """Run `obelm` backward; see `undo_reversible_heun` for arguments, `undo_bdia` for the mismatch."""
    x, sigmas, before = prepare_undo(x, companion, sigmas, "before")
    return _undo_two_step(velocity, x, before, sigmas, _balance(sigmas))


def _balance(sigmas: Tensor) -> Tensor:
    h = sigmas.diff()
    return (h[1:] / h[:-1]).square().clamp(0.25, 1)


def _two_step(velocity: Velocity, x: Tensor, sigmas: Tensor, gammas: Tensor) -> Iterator[Step]:
    hs, before = sigmas.diff(), x
    for number, h in enumerate(hs):
        v = evaluate(velocity, x, sigmas[number], number)
        if number == 0:
            before, x = x, x + h * v
        else:
            gamma = gammas[number - 1]
            before, x = x, gamma * before + (1 - gamma) * x + (h + gamma * hs[number - 1]) * v
        yield Step(number, sigmas[number], sigmas[number + 1], v, x, {"before": before})


def _undo_two_step(
    velocity: Velocity, x: Tensor, before: Tensor, sigmas: Tensor, gammas: Tensor
) -> Iterator[Step]:
    hs = sigmas.diff()
    for number in reversed(range(len(hs))):
        v, mismatch = evaluate(velocity, before, sigmas[number], number), None
        if number == 0:  # x is the state after the first step, Euler's, and `before` that where it began
            mismatch = rms(before + hs[0] * v - x)
            x = before
        else:
            gamma = gammas[number - 1]
            further = (x - (1 - gamma) * before - (hs[number] + gamma * hs[number - 1]) * v) / gamma
            x, before = before, further
        yield Step(number, sigmas[number + 1], sigmas[number], v, x, {"before": before}, mismatch=mismatch)
