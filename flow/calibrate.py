"""Tables of noise levels made for one flow: where its paths bend, steps are short.

acceleration       SharpEuler, arXiv:2605.11547: density of levels from how fast the velocity turns
optimal_steps      OptimalSteps, arXiv:2503.21774: dynamic programming over levels of a finer table
search             from the levels of acceleration on, by least squares of where a solver ends; see `search`

Each needs a few starts and no training. A table belongs to the velocity it was made with, guidance included,
and to the solver that it was made for: Euler's method, or the one that was searched for.

Where guidance ends the velocity jumps, and a step across follows the guided one beyond. So acceleration and
search put a level there, where the caller says where that is, and optimal_steps may choose it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .errors import FlowError
from .inverse.approximate import Counted
from .precision import as_float64, wide
from .schedule import checked_steps, sigmas
from .search import check_searched, held, search_levels
from .solvers.base import Velocity, evaluate, last
from .solvers.runge_kutta import euler, rk4
from .solvers.table import solve

CalibrationMethod = Literal["acceleration", "optimal_steps", "search"]
FINE = 100
"""Steps of the finer table where none is given."""
COARSER = 4
"""One step of Runge and Kutta's method for so many of Euler's, at the same cost: the teacher of a search."""


@dataclass(frozen=True)
class Calibration:
    """A table and how it was made: JSON values, to be stored as such."""

    sigmas: tuple[float, ...]
    """(steps + 1,), from 1 to 0."""
    method: str
    samples: int
    """Starts that it was made from."""
    evaluations: int
    """Of the velocity, each for all the starts together. `sd35 calibrate --budget` adds its search's."""
    rms: float
    """How far the solver ends on this table from the teacher on the fine one, root mean square over the
    starts. The teacher is Euler's method, and of a search Runge and Kutta's, whose error is far below."""
    computed: tuple[int, ...] | None = None
    """The steps that are best computed where not all may be; see `budget.choose_steps`."""
    solver: str = "euler"
    """What it was made for."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Whatever the caller says made the velocity: model, prompts, guidance."""

    @property
    def table(self) -> Tensor:
        """The levels as solvers take them, float32."""
        return torch.tensor(self.sigmas, dtype=torch.float32, device="cpu")


def calibrate(
    velocity: Velocity,
    noise: Tensor,
    steps: int,
    *,
    method: CalibrationMethod = "optimal_steps",
    solver: str = "euler",
    fine: Tensor | None = None,
    least_ratio: float | None = None,
    windows: Sequence[tuple[float, float]] = (),
    settings: Mapping[str, Any] | None = None,
) -> Calibration:
    """Find the table of so many steps on which a solver keeps nearest to the flow.

    Args:
        velocity: of the flow, guided as it will be used.
        noise: starts, (B, *S), one table for all; 4 to 16 will do.
        steps: of the table.
        method: see the head of this file. acceleration takes one evaluation for each fine step, and one
            profile serves every number of steps; optimal_steps takes that times `steps`, and is nearer;
            search takes twice that, and about 2 · steps² for each evaluation of a step.
        solver: of a search; the other methods are of Euler's alone.
        fine: the table of the teacher, from 1 to 0; None is a tailed one of 100 steps.
        least_ratio: σ' / σ of a step is at least that, except of the last, to 0 (see `schedule.tailed`), so
            that what is generated with the table can be inverted. None sets no bound.
        windows: as in `Cached`: noise levels inside of which the velocity is of another kind. The nearest
            levels are moved to the ends of these, so that no step leads across one; of optimal_steps those of
            the fine table, which it may choose or not.
        settings: kept in the result.

    Raises:
        FlowError: an unknown method, a solver that it is not of, a fine table that has not more steps or does
            not fall from 1 to 0, or a bound out of range.
    """
    steps = checked_steps(steps)
    fine = sigmas(FINE, preset="tailed") if fine is None else fine
    if method not in get_args(CalibrationMethod):
        raise FlowError(f"method must be one of {', '.join(get_args(CalibrationMethod))}; got {method!r}")
    if len(fine) < steps + 2 or fine[0] != 1 or fine[-1] != 0:
        raise FlowError(
            f"the fine table must fall from 1 to 0 in more than {steps} steps; it has {len(fine) - 1}, "
            f"from {float(fine[0]):g} to {float(fine[-1]):g}"
        )
    if least_ratio is not None and not 0 < least_ratio < 1:
        raise FlowError(f"least_ratio must lie in (0, 1), got {least_ratio}")
    check_searched(solver)
    if method != "search" and solver != "euler":
        raise FlowError(f"the tables of {method} are for 'euler'; for {solver!r} take the method 'search'")
    fine = pinned(fine, windows)
    counted = Counted(velocity)
    teacher = list(euler(counted, noise, fine))
    if method == "optimal_steps":
        states = torch.stack([as_float64(noise), *(as_float64(step.x) for step in teacher)])
        table = as_float64(fine)[_programme(counted, wide(noise), states, fine, steps, least_ratio)]
    else:
        profile = acceleration([step.velocity for step in teacher], fine)
        table = spread(profile, fine, steps, least_ratio, windows)
    end = teacher[-1].x
    if method == "search":
        end = last(rk4(counted, noise, _on_both_sides(fine, windows))).x
        table = search_levels(counted, noise, end, table, solver, _fixed(table, windows), least_ratio)
    rms = float((solve(counted, noise, table.float(), solver) - end).square().mean().sqrt())
    return Calibration(
        tuple(table.tolist()),
        method,
        len(noise),
        counted.calls,
        rms,
        solver=solver,
        settings=dict(settings or {}),
    )


def ends(windows: Sequence[tuple[float, float]]) -> list[float]:
    """The first level beyond each end of a window, on the way down, that lies between 1 and 0, falling.

    A window holds both of its ends. So that is the upper end itself, and the level just below the lower one:
    a step down to it comes to the end, and the next begins beyond.
    """
    lower, upper = (_levels(low for low, _ in windows), _levels(high for _, high in windows))
    return sorted({*torch.nextafter(lower, torch.zeros_like(lower)).tolist(), *upper.tolist()}, reverse=True)


def _levels(ends: Iterable[float]) -> Tensor:
    return torch.tensor([end for end in ends if 0 < end < 1], dtype=torch.float32, device="cpu")


def _on_both_sides(fine: Tensor, windows: Sequence[tuple[float, float]]) -> Tensor:
    """A coarser table with levels on either side of each end, so that no stage of a step is on the other."""
    below = torch.tensor(ends(windows), dtype=torch.float32, device="cpu")
    above = torch.nextafter(below, torch.ones_like(below))
    coarse = torch.cat([fine[:-1:COARSER], fine[-1:]]).float().cpu()
    return torch.cat([coarse, below, above]).unique().flip(0)


def pinned(table: Tensor, windows: Sequence[tuple[float, float]]) -> Tensor:
    """A table whose nearest levels are moved to the `ends` of windows."""
    table, free = table.clone(), set(range(1, len(table) - 1))
    for end in ends(windows):
        if free:
            nearest = min(sorted(free), key=lambda place: abs(float(table[place]) - end))
            table[nearest] = end
            free.remove(nearest)
    return table.sort(descending=True).values


def acceleration(velocities: list[Tensor], fine: Tensor) -> Tensor:
    """How fast the velocity turns between levels: rms of |v' - v| / |σ' - σ|, (steps - 1,) float64.

    The local error of an Euler step is h² / 2 times that. Smoothed, as it is of few starts, and cut at four
    times its median: near σ = 0 a network's velocity is steep from its errors alone.
    """
    h = as_float64(fine).diff()[:-1].abs()
    turns = [as_float64(after - before).square().mean().sqrt() for before, after in pairwise(velocities)]
    profile = torch.stack(turns).to(h) / h
    bell = torch.exp(-torch.arange(-6, 7, dtype=h.dtype, device=h.device).square() / 8)  # 2 levels wide
    around = torch.nn.functional.pad(profile[None, None], (6, 6), mode="replicate")
    profile = torch.nn.functional.conv1d(around, (bell / bell.sum())[None, None])[0, 0]
    return profile.clamp_max(4 * profile.median())


def spread(
    profile: Tensor,
    fine: Tensor,
    steps: int,
    least_ratio: float | None = None,
    windows: Sequence[tuple[float, float]] = (),
) -> Tensor:
    """Levels at equal shares of ∫ √profile dσ, which makes Σ h² · profile least, (steps + 1,) float64.

    They are `pinned` to the ends of windows, and the others `held` to the bound.
    """
    levels = as_float64(fine)
    root = torch.cat([profile, profile[-1:]]).sqrt()  # the last fine step has no velocity after it
    whole = torch.cat([torch.zeros_like(root[:1]), (root * levels.diff().abs()).cumsum(0)])
    wanted = torch.linspace(0, 1, steps + 1, dtype=whole.dtype, device=whole.device)[1:-1] * whole[-1]
    place = torch.searchsorted(whole, wanted).clamp(1, len(whole) - 1)
    share = (wanted - whole[place - 1]) / (whole[place] - whole[place - 1])
    inner = levels[place - 1] + share * levels.diff()[place - 1]
    table = pinned(torch.cat([levels[:1], inner, levels[-1:]]), windows)
    return held(table, least_ratio, _fixed(table, windows))


def _fixed(table: Tensor, windows: Sequence[tuple[float, float]]) -> list[int]:
    """The places of levels that are `ends` of windows."""
    beyond = ends(windows)
    return [place for place, level in enumerate(table.tolist()) if level in beyond]


def _programme(
    velocity: Velocity, noise: Tensor, states: Tensor, fine: Tensor, steps: int, least_ratio: float | None
) -> list[int]:
    """The levels of `fine` by dynamic programming.

    For each fine level the best state that a student reaches there in k Euler steps is kept: best is nearest,
    in the mean square over the batch, to the teacher's state there. From all of them each further level is
    tried. Every path has exactly `steps` steps and begins at the noise, so no step is of no length; and any
    level may be the last before 0, so there is always one.

    Args:
        velocity: of the flow.
        noise: the starts, for their shape, dtype and device.
        states: the teacher's, (N + 1, B, *S) float64.
        fine: its levels, (N + 1,).
        steps: of the student.
        least_ratio: as in `calibrate`.
    """
    levels, count = as_float64(fine).to(states), len(fine) - 1
    flat = states.flatten(1)
    squares = flat.square().sum(1)
    reached: dict[int, Tensor] = {0: flat[0]}
    origins: list[dict[int, int]] = []
    for k in range(1, steps + 1):
        costs = torch.full((count + 1,), torch.inf, dtype=flat.dtype, device=flat.device)
        origin: dict[int, int] = {}
        candidates: dict[int, tuple[Tensor, Tensor]] = {}
        for i, z in reached.items():
            v = evaluate(velocity, z.reshape(noise.shape).to(noise), levels[i].to(noise), k - 1)
            v = as_float64(v).flatten()
            h = levels[i + 1 :] - levels[i]
            # |z + h v - X|², for all the teacher's states X at once
            against = z.square().sum() + squares[i + 1 :] + h**2 * v.square().sum() + 2 * h * (z @ v)
            against = against - 2 * (flat[i + 1 :] @ z) - 2 * h * (flat[i + 1 :] @ v)
            if least_ratio is not None:
                against[:-1][levels[i + 1 : -1] < least_ratio * levels[i] * (1 - 1e-6)] = torch.inf
            better = (against < costs[i + 1 :]).nonzero().flatten() + i + 1
            costs[better] = against[better - i - 1]
            candidates[i] = (z, v)
            origin |= dict.fromkeys(better.tolist(), i)
        origins.append(origin)
        ends = k == steps
        reached = {
            j: candidates[i][0] + (levels[j] - levels[i]) * candidates[i][1]
            for j, i in sorted(origin.items())
            if (j == count) == ends
        }
    chosen = [count]
    for origin in reversed(origins):
        chosen.append(origin[chosen[-1]])
    return chosen[::-1]
