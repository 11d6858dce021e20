"""Solvers that can be run backward exactly: they carry a second state, the companion, to undo steps from.

Each comes as a pair, the solver and its undoing. Undoing takes the last x, the companion there and the
sigmas of the generation, repeats the velocities that the generation saw, and returns to the first x up to
rounding.

    reversible Heun           Kidger et al. 2021, arXiv:2105.13493, algorithm 1
    asynchronous leapfrog     Mutze 2013, arXiv:1311.6602; damped: Zhuang et al. 2021 (MALI), arXiv:2102.04668
    BDIA, O-BELM              in `two_step`
    Rex                       in `rex`

A generation begins with a second state made from x alone. Undoing ends in `Step.mismatch`, how far the two
are from that again: by rounding, if every velocity was the generation's, and nothing else tells that.

EDICT (Wallace et al. 2022, arXiv:2211.12446) is not here: it takes two evaluations a step, so that at equal
cost its steps are twice as long, and ends farther from the flow than Euler's method: on a guided field 28 dB
in 28 evaluations, Euler 35. `rex` takes as many, but on a tailed table its form gains more than that loses.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from ..errors import FlowError
from ..path import rms
from .base import Step, Velocity, evaluate, prepare, watched


@watched
def reversible_heun(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """Heun's method with a shadow z at which the velocity is taken. Order 2; one evaluation a step.

        z' = 2 x - z + h m;    m' = v(z', σ');    x' = x + h (m + m') / 2        (z = x, m = v(x, σ) at first)

    A last step to σ = 0 uses the m it has, x' = x + h m, so that 0 is never evaluated; where the table ends
    elsewhere, there is one evaluation more. Companion: z, (B, *S).
    """
    x, sigmas = prepare(x, sigmas)
    levels = sigmas.tolist()

    def steps(x: Tensor) -> Iterator[Step]:
        z, m = x, evaluate(velocity, x, sigmas[0], 0)
        for number, h in enumerate(sigmas.diff()):
            sigma, sigma_next = sigmas[number], sigmas[number + 1]
            v = m
            if levels[number + 1] == 0:
                x = x + h * m
            else:
                z = 2 * x - z + h * m
                m = evaluate(velocity, z, sigma_next, number)
                x = x + h * (v + m) / 2
            yield Step(number, sigma, sigma_next, v, x, {"z": z})

    return steps(x)


@watched
def undo_reversible_heun(
    velocity: Velocity, x: Tensor, companion: Mapping[str, Tensor], sigmas: Tensor
) -> Iterator[Step]:
    """Run `reversible_heun` backward: the same formulas, solved for what stood before.

    The mismatch is z - x, which costs no evaluation.

    Args:
        velocity: that of the generation.
        x: the state at `sigmas[-1]`, (B, *S).
        companion: that of the generation's last step.
        sigmas: those of the generation.

    Yields:
        The steps in reverse, `number` falling to 0, `x` and `companion` at `sigma_next`, the noisier end of a
        generation's step; the last with its mismatch.

    Raises:
        FlowError: the companion does not fit; and as in `euler`.
    """
    x, sigmas, z = prepare_undo(x, companion, sigmas, "z")
    levels = sigmas.tolist()

    def steps(x: Tensor, z: Tensor) -> Iterator[Step]:
        m = None
        for number in reversed(range(len(sigmas) - 1)):
            sigma, sigma_next = sigmas[number], sigmas[number + 1]
            h = sigma_next - sigma
            if levels[number + 1] == 0:
                m = evaluate(velocity, z, sigma, number)
                x = x - h * m
            else:
                m_next = evaluate(velocity, z, sigma_next, number) if m is None else m
                z = 2 * x - z - h * m_next
                m = evaluate(velocity, z, sigma, number)
                x = x - h * (m + m_next) / 2
            mismatch = rms(z - x) if number == 0 else None
            yield Step(number, sigma_next, sigma, m, x, {"z": z}, mismatch=mismatch)

    return steps(x, z)


@watched
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


@watched
def undo_leapfrog(
    velocity: Velocity, x: Tensor, companion: Mapping[str, Tensor], sigmas: Tensor, *, damping: float = 0.9
) -> Iterator[Step]:
    """Run `leapfrog` backward; see `undo_reversible_heun` for arguments and steps.

    One evaluation more is spent at the end, on v(x, σ), which w should meet there. The mismatch is what their
    difference adds to x, h/2 · (w - v).
    """
    check_damping(damping)
    x, sigmas, w = prepare_undo(x, companion, sigmas, "w")

    def steps(x: Tensor, w: Tensor) -> Iterator[Step]:
        for number in reversed(range(len(sigmas) - 1)):
            h = sigmas[number + 1] - sigmas[number]
            p = x - h * w / 2
            u = evaluate(velocity, p, sigmas[number] + h / 2, number)
            w = (w - 2 * damping * u) / (1 - 2 * damping)
            x = p - h * w / 2
            mismatch = None
            if number == 0:
                mismatch = rms(h / 2 * (w - evaluate(velocity, x, sigmas[0], 0)))
            yield Step(number, sigmas[number + 1], sigmas[number], u, x, {"w": w}, mismatch=mismatch)

    return steps(x, w)


def check_damping(damping: float) -> None:
    """Raise FlowError unless the damping lies in (0.5, 1]: at 0.5 nothing of w would be left to undo."""
    if not 0.5 < damping <= 1:
        raise FlowError(f"damping must be above 0.5 and at most 1, got {damping}")


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
