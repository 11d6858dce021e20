"""Dormand & Prince's embedded pair 5(4), which chooses its steps (Hairer, Nørsett & Wanner I, II.5, II.6)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import FlowError
from ..path import rms
from .base import Step, Velocity, evaluate, prepare

NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # the fifth-order solution itself
)
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
DENSE = (
    -12715105075 / 11282082432,
    0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)


def dopri5(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    max_evaluations: int = 10_000,
) -> Iterator[Step]:
    """Integrate with steps of its own choice, to a tolerance. Order 5; six evaluations a step of its own.

    The table says where states are wanted, not where steps end: states between are interpolated to order 4,
    so a dense table costs nothing and `[1, 0]` is enough for the end alone. All samples of a batch share the
    steps, and the worst decides. The pair has stages at the end of a step, so σ = 0 is evaluated.
    `Step.velocity` is that at the start of the solver's own step.

    Args:
        velocity: called as velocity(x, sigma), sigma being (B,).
        x: the state at `sigmas[0]`, (B, *S).
        sigmas: noise levels in [0, 1], (steps + 1,), falling or rising.
        rtol: error allowed in a step relative to the size of x, root mean square over a sample.
        atol: error allowed beside that.
        max_evaluations: gives up beyond.

    Raises:
        FlowError: tolerances that the dtype of `x` cannot meet; the evaluations are used up; and as in
            `euler`.
    """
    x, sigmas = prepare(x, sigmas)
    finest = 10 * torch.finfo(x.dtype).eps
    if not (rtol >= finest and atol >= 0):
        raise FlowError(
            f"rtol {rtol:g} and atol {atol:g}: {x.dtype} needs rtol >= {finest:.1e} and atol >= 0"
        )
    if max_evaluations < 7:
        raise FlowError(f"max_evaluations must be at least 7, one step, got {max_evaluations}")
    return _steps(velocity, x, sigmas, rtol, atol, max_evaluations)


def _steps(
    velocity: Velocity, x: Tensor, sigmas: Tensor, rtol: float, atol: float, max_evaluations: int
) -> Iterator[Step]:
    table = sigmas.tolist()
    at, end = table[0], table[-1]
    h = table[1] - at
    wanted = 0  # the interval of the table whose end is still to be reached
    k1 = evaluate(velocity, x, sigmas[0], 0)
    evaluations = 1
    while wanted < len(table) - 1:
        h = h if abs(h) < abs(end - at) else end - at
        if evaluations + 6 > max_evaluations:
            raise FlowError(
                f"dopri5 reached sigma {at:.6g} in {evaluations} evaluations; raise max_evaluations or rtol"
            )
        x_next, ks = stages(velocity, x, at, h, k1, wanted)
        evaluations += 6
        scale = atol + rtol * torch.maximum(x.abs(), x_next.abs())
        scale = scale.clamp_min(torch.finfo(x.dtype).tiny)  # with atol 0, a zero that stays one has no error
        error = float(rms(h * _sum(ERROR, ks) / scale).detach().max())
        if error <= 1:
            reached = end if h == end - at else at + h
            while wanted < len(table) - 1 and abs(table[wanted + 1] - at) <= abs(reached - at):
                part = (table[wanted + 1] - at) / (reached - at)
                state = x_next if part == 1 else _between(x, x_next, h, ks, part)
                yield Step(wanted, sigmas[wanted], sigmas[wanted + 1], k1, state)
                wanted += 1
            at, x, k1 = reached, x_next, ks[-1]
        h *= 5.0 if error == 0 else min(5.0, max(0.2, 0.9 * error**-0.2))
        if wanted < len(table) - 1 and abs(h) < 4 * torch.finfo(x.dtype).eps:
            raise FlowError(f"dopri5 cannot meet rtol {rtol:g} at sigma {at:.6g} in {x.dtype}; raise rtol")


def stages(
    velocity: Velocity, x: Tensor, at: float, h: float, k1: Tensor, number: int
) -> tuple[Tensor, list[Tensor]]:
    """The end of a step and its seven velocities, the last of which is the first of the next step."""
    ks, state = [k1], x
    for node, weights in list(zip(NODES, STAGES, strict=True))[1:]:
        state = x + h * _sum(weights, ks)
        # at + h may pass 0 or 1 by a rounding error
        sigma = torch.tensor(min(1.0, max(0.0, at + node * h)), dtype=x.dtype, device=x.device)
        ks.append(evaluate(velocity, state, sigma, number))
    return state, ks


def _between(x: Tensor, x_next: Tensor, h: float, ks: list[Tensor], part: float) -> Tensor:
    """The state at a part in (0, 1) of a step, to order 4 (Hairer's code DOPRI5, CONTD5)."""
    rise = x_next - x
    bend = h * ks[0] - rise
    return x + part * (
        rise + (1 - part) * (bend + part * (rise - h * ks[-1] - bend + (1 - part) * h * _sum(DENSE, ks)))
    )


def _sum(weights: tuple[float, ...], ks: list[Tensor]) -> Tensor:
    return sum((weight * k for weight, k in zip(weights, ks, strict=True) if weight), torch.zeros_like(ks[0]))
