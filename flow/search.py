"""Noise levels on which a solver ends nearest to the flow, by least squares.

What is wrong at the end of a run, in all values of a few starts, is a smooth function of the inner levels of
its table. Levenberg's and Marquardt's method (Nocedal & Wright, Numerical Optimization, 10.3) takes its
derivatives from one run for each level that is moved a little, of which only the part from that level on is
computed; no gradient of the network is needed. Few starts are enough: a table of N steps has N - 1 unknowns,
and each start as many equations as it has values.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor

from .errors import FlowError
from .precision import as_float64
from .solvers.base import Velocity
from .solvers.table import lookup, solve

NUDGE = 0.02
"""Of the distance to the nearer neighbour: how far a level is moved for a derivative."""
REACH = 0.45
"""Of that distance: how far it goes at most in a round, so that levels stay in order."""
ROUNDS, TRIES = 4, 4
"""Rounds at most, and steps of rising damping that are tried in each."""
WORTH = 0.99
"""A round that leaves more than that of the error is the last."""

Answers = dict[tuple[float, ...], Tensor]
"""Velocities by the levels at which a run had called for them, the last included."""


def check_searched(solver: str) -> None:
    """See that a solver's end depends on its table, and on nothing else.

    Raises:
        FlowError: it draws noise, or chooses its steps; or there is none of that name.
    """
    entry = lookup(solver)
    if entry.stochastic or entry.evaluations is None:
        why = "draws noise" if entry.stochastic else "chooses its own steps"
        raise FlowError(f"no table is searched for {solver!r}, which {why}")


def held(table: Tensor, least_ratio: float | None, fixed: Collection[int] = ()) -> Tensor:
    """A table whose levels, where they lie further below the one before than a bound, are moved up to it.

    Where the lower of two is fixed, the upper one is moved down in its place, and those before it likewise.
    A fixed level that no table of so many steps reaches from 1 is moved all the same.
    """
    if least_ratio is None:
        return table
    table = table.clone()
    for place in range(len(table) - 2, 1, -1):
        if any(place <= one for one in fixed) and place - 1 not in fixed:
            table[place - 1] = torch.minimum(table[place - 1], table[place] / least_ratio)
    for place in range(1, len(table) - 1):
        table[place] = torch.maximum(table[place], least_ratio * table[place - 1])
    return table


def search_levels(
    velocity: Velocity,
    noise: Tensor,
    end: Tensor,
    table: Tensor,
    solver: str,
    fixed: Collection[int] = (),
    least_ratio: float | None = None,
) -> Tensor:
    """Move the inner levels of a table to where a solver ends nearest to the flow.

    It takes about 2 · steps² evaluations.

    Args:
        velocity: of the flow, guided as it will be used.
        noise: starts, (B, *S).
        end: where the flow ends, (B, *S).
        table: to begin with, (steps + 1,).
        solver: of that table; see `check_searched`.
        fixed: places in the table that are kept, beside the first and the last.
        least_ratio: see `held`.

    Returns:
        (steps + 1,) float64.
    """
    levels, target = as_float64(table), as_float64(end).flatten()
    free = [place for place in range(1, len(levels) - 1) if place not in fixed]

    def run(levels: Tensor, known: Answers) -> tuple[Tensor, Answers]:
        remembered = _Remembered(velocity, known)
        found = solve(remembered, noise, levels.float(), solver)
        return (as_float64(found).flatten() - target) / math.sqrt(len(target)), remembered.answers

    error, answers = run(levels, {})
    damping = 0.01
    for _ in range(ROUNDS if free else 0):
        gaps = levels.diff().abs()
        gaps = torch.minimum(gaps[:-1], gaps[1:])[[place - 1 for place in free]]  # to the nearer neighbour
        slopes = [
            (run(_moved(levels, [place], -NUDGE * gap[None]), answers)[0] - error) / -NUDGE
            for place, gap in zip(free, gaps, strict=True)
        ]  # for a move by one gap
        jacobian = torch.stack(slopes, dim=1)
        normal, steepest = jacobian.T @ jacobian, jacobian.T @ error
        if not steepest.any():
            break
        scale = normal.diag()
        scale = scale.clamp_min(1e-12 * scale.max()).diag()  # some level may have no effect
        before = error
        for _ in range(TRIES):
            move = -torch.linalg.solve(normal + damping * scale, steepest)
            move = move * (REACH / move.abs().max()).clamp(max=1)
            tried = held(_moved(levels, free, move.to(gaps) * gaps), least_ratio, fixed)
            found, own = run(tried, answers)
            if found.norm() < error.norm():
                levels, error, answers, damping = tried, found, own, damping / 4
                break
            damping *= 6
        if error.norm() > WORTH * before.norm():
            break
    return levels


def _moved(levels: Tensor, places: list[int], by: Tensor) -> Tensor:
    moved = levels.clone()
    moved[places] += by
    return moved


class _Remembered:
    """A velocity along a run: what another run computed after the same levels is not computed again.

    A solver's state where it calls depends on the levels that it called at so far.
    """

    def __init__(self, velocity: Velocity, known: Answers) -> None:
        self.velocity, self.known = velocity, known
        self.answers: Answers = {}
        self.levels: tuple[float, ...] = ()

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.levels += (float(sigma[0]),)
        v = self.known.get(self.levels)
        self.answers[self.levels] = self.velocity(x, sigma) if v is None else v
        return self.answers[self.levels]
