"""Solvers that can be run backward exactly: they carry a second state, the companion, to undo steps from.

Each comes as a pair, the solver and its undoing. Undoing takes the last x, the companion there and the
sigmas of the generation, repeats the velocities that the generation saw, and returns to the first x up to
rounding.

    reversible Heun           Kidger et al. 2021, arXiv:2105.13493, algorithm 1
    asynchronous leapfrog     Mutze 2013, arXiv:1311.6602; damped: Zhuang et al. 2021 (MALI), arXiv:2102.04668
    BDIA                      Zhang et al. 2023, arXiv:2307.10829
    O-BELM                    Wang et al. 2024, arXiv:2410.07273
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..errors import FlowError
from .base import Step, Velocity, evaluate, prepare


def reversible_heun(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """Heun's method with a shadow z at which the velocity is taken. Order 2; one evaluation a step.

        z' = 2 x - z + h m;    m' = v(z', σ');    x' = x + h (m + m') / 2        (z = x, m = v(x, σ) at first)

    A last step to σ = 0 uses the m it has, x' = x + h m, so that 0 is never evaluated; where the table ends
    elsewhere, there is one evaluation more. Companion: z, (B, *S).
    """
    x, sigmas = prepare(x, sigmas)

    def steps(x: Tensor) -> Iterator[Step]:
        z, m = x, evaluate(velocity, x, sigmas[0], 0)
        for number, h in enumerate(sigmas.diff()):
            sigma, sigma_next = sigmas[number], sigmas[number + 1]
            v = m
            if sigma_next == 0:
                x = x + h * m
            else:
                z = 2 * x - z + h * m
                m = evaluate(velocity, z, sigma_next, number)
                x = x + h * (v + m) / 2
            yield Step(number, sigma, sigma_next, v, x, {"z": z})

    return steps(x)


def undo_reversible_heun(
    velocity: Velocity, x: Tensor, companion: Mapping[str, Tensor], sigmas: Tensor
) -> Iterator[Step]:
    """Run `reversible_heun` backward: the same formulas, solved for what stood before.

    Args:
        velocity: that of the generation.
        x: the state at `sigmas[-1]`, (B, *S).
        companion: that of the generation's last step.
        sigmas: those of the generation.

    Yields:
        The steps in reverse, `number` falling to 0, `x` and `companion` at `sigma_next`, the noisier end of a
        generation's step.

    Raises:
        FlowError: the companion does not fit; and as in `euler`.
    """
    x, sigmas, z = prepare_undo(x, companion, sigmas, "z")

    def steps(x: Tensor, z: Tensor) -> Iterator[Step]:
        m = None
        for number in reversed(range(len(sigmas) - 1)):
            sigma, sigma_next = sigmas[number], sigmas[number + 1]
            h = sigma_next - sigma
            if sigma_next == 0:
                m = evaluate(velocity, z, sigma, number)
                x = x - h * m
            else:
                m_next = evaluate(velocity, z, sigma_next, number) if m is None else m
                z = 2 * x - z - h * m_next
                m = evaluate(velocity, z, sigma, number)
                x = x - h * (m + m_next) / 2
            yield Step(number, sigma_next, sigma, m, x, {"z": z})

    return steps(x, z)


def leapfrog(velocity: Velocity, x: Tensor, sigmas: Tensor, *, damping: float = 0.9) -> Iterator[Step]:
    """Asynchronous leapfrog: x and a velocity w of its own, which follows v in the middle of each step.

        p = x + h w / 2;    u = v(p, σ + h/2);    w' = w + 2 η (u - w);    x' = p + h w' / 2

    Order 2 at η = 1, else 1; one evaluation a step, and one more at the start, w = v(x, σ). Companion: w.

    Args:
        velocity: called as velocity(x, sigma), sigma being (B,).
        x: the state at `sigmas[0]`, (B, *S).
        sigmas: noise levels in [0, 1], (steps + 1,).
        damping: η, in (0.5, 1]. At 1 the way back does not grow rounding errors but the way out is less
            accurate; below, it is the other way round, by 1 / (2 η - 1) a step.

    Raises:
        FlowError: a damping out of range; and as in `euler`.
    """
    x, sigmas = prepare(x, sigmas)
    check_damping(damping)

    def steps(x: Tensor) -> Iterator[Step]:
        w = evaluate(velocity, x, sigmas[0], 0)
        for number, h in enumerate(sigmas.diff()):
            p = x + h * w / 2
            u = evaluate(velocity, p, sigmas[number] + h / 2, number)
            w = w + 2 * damping * (u - w)
            x = p + h * w / 2
            yield Step(number, sigmas[number], sigmas[number + 1], u, x, {"w": w})

    return steps(x)


def undo_leapfrog(
    velocity: Velocity, x: Tensor, companion: Mapping[str, Tensor], sigmas: Tensor, *, damping: float = 0.9
) -> Iterator[Step]:
    """Run `leapfrog` backward; see `undo_reversible_heun` for arguments and steps."""
    check_damping(damping)
    x, sigmas, w = prepare_undo(x, companion, sigmas, "w")

    def steps(x: Tensor, w: Tensor) -> Iterator[Step]:
        for number in reversed(range(len(sigmas) - 1)):
            h = sigmas[number + 1] - sigmas[number]
            p = x - h * w / 2
            u = evaluate(velocity, p, sigmas[number] + h / 2, number)
            w = (w - 2 * damping * u) / (1 - 2 * damping)
            x = p - h * w / 2
            yield Step(number, sigmas[number + 1], sigmas[number], u, x, {"w": w})

    return steps(x, w)


def check_damping(damping: float) -> None:
    """Raise FlowError unless the damping lies in (0.5, 1]: at 0.5 nothing of w would be left to undo."""
    if not 0.5 < damping <= 1:
        raise FlowError(f"damping must be above 0.5 and at most 1, got {damping}")


def bdia(velocity: Velocity, x: Tensor, sigmas: Tensor, *, gamma: float = 0.96) -> Iterator[Step]:
    """Bidirectional integration: a step forward from x, and as much as γ of the error of one backward.

        x' = γ x₋ + (1 - γ) x + (h + γ h₋) v(x, σ)        (x₋, h₋: the state and the step before)

    Order 2 at γ = 1 where neighbouring steps are alike; below, order 1. One evaluation a step, never at the
    end. The first step is Euler's. Companion: x₋, as `before`. It is here because it is published and used:
    on guided fields it is about as close to the flow as Euler's method, and `obelm`, which costs the same, is
    closer.

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


def undo_bdia(
    velocity: Velocity, x: Tensor, companion: Mapping[str, Tensor], sigmas: Tensor, *, gamma: float = 0.96
) -> Iterator[Step]:
    """Run `bdia` backward; see `undo_reversible_heun` for arguments and steps."""
    check_gamma(gamma)
    x, sigmas, before = prepare_undo(x, companion, sigmas, "before")
    return _undo_two_step(velocity, x, before, sigmas, torch.full_like(sigmas[2:], gamma))


def check_gamma(gamma: float) -> None:
    """Raise FlowError unless gamma lies in [0.9, 1]."""
    if not 0.9 <= gamma <= 1:
        raise FlowError(f"gamma must lie in [0.9, 1], as undoing a step divides by it; got {gamma}")


def obelm(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """O-BELM: the two-step scheme of `bdia` with the γ that cancels the error of second order, at most 1.

        γ = (h / h₋)², but at most 1 and at least 1/4

    Order 2 where γ is not clipped. As published it never is. Then the scheme is unstable where steps grow, as
    those of the reference tables do, and undoing loses digits where a step is much shorter than the one
    before, as their last is. One evaluation a step, never at the end. Companion: x₋, as `before`.
    """
    x, sigmas = prepare(x, sigmas)
    return _two_step(velocity, x, sigmas, _balance(sigmas))


def undo_obelm(
    velocity: Velocity, x: Tensor, companion: Mapping[str, Tensor], sigmas: Tensor
) -> Iterator[Step]:
    """Run `obelm` backward; see `undo_reversible_heun` for arguments and steps."""
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
    hs, v = sigmas.diff(), torch.zeros_like(x)
    for number in reversed(range(len(hs))):
        if number == 0:  # the state before the first step is the companion after it; nothing to compute
            x = before
        else:
            gamma = gammas[number - 1]
            v = evaluate(velocity, before, sigmas[number], number)
            further = (x - (1 - gamma) * before - (hs[number] + gamma * hs[number - 1]) * v) / gamma
            x, before = before, further
        yield Step(number, sigmas[number + 1], sigmas[number], v, x, {"before": before})


def prepare_undo(
    x: Tensor, companion: Mapping[str, Tensor], sigmas: Tensor, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`prepare`, and the companion of that name in the dtype and on the device of `x`.

    Raises:
        FlowError: the companion has not that one tensor, or it is shaped unlike `x`.
    """
    x, sigmas = prepare(x, sigmas)
    if set(companion) != {name}:
        raise FlowError(f"the companion must hold {name!r}, got {', '.join(sorted(companion)) or 'nothing'}")
    second = companion[name]
    if second.shape != x.shape:
        raise FlowError(
            f"companion {name!r} must be shaped as x, {tuple(x.shape)}, got {tuple(second.shape)}"
        )
    return x, sigmas, second.to(x)
