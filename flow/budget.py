"""Which steps of a table to compute, where only so many may be: a fixed choice for a budget.

BudCache (arXiv:2606.13496) searches the choice whose run ends nearest to the run without a cache. Here the
search is a descent: one computed step at a time is moved to where it helps most, until no move helps.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .cache import Cached, Reuse, inside
from .errors import FlowError
from .path import rms
from .solvers.base import Velocity, last
from .solvers.runge_kutta import euler

REACH = 3
"""Steps by which a computed one is moved at most."""


def choose_steps(
    velocity: Velocity,
    noise: Tensor,
    sigmas: Tensor,
    budget: int,
    *,
    reuse: Reuse = "line",
    rounds: int = 4,
    windows: Sequence[tuple[float, float]] = (),
) -> tuple[int, ...]:
    """The steps of Euler's method that are best computed, where the others use the last ones again.

    It takes about 6 · `budget` runs of `budget` evaluations a round, most of which begin late, as what is
    before a moved step is known.

    Args:
        velocity: of the flow, guided as it will be used.
        noise: starts, (B, *S); 4 will do.
        sigmas: the table, (steps + 1,).
        budget: how many steps are computed, the first included, and those which `windows` force.
        reuse: as in `Cached`.
        rounds: at most, of moving each computed step once.
        windows: as in `Cached`; the first step on the other side of an end is computed and not moved.

    Raises:
        FlowError: a budget that is not in 1 ... steps, or below the number of steps that must be computed.
    """
    count = len(sigmas) - 1
    if not 1 <= budget <= count:
        raise FlowError(f"budget must be 1 to {count}, the steps of the table; got {budget}")
    forced = _forced(sigmas, windows)
    if budget < len(forced):
        raise FlowError(f"budget must be at least {len(forced)}, as steps {sorted(forced)} must be computed")
    search = _Search(velocity, noise, sigmas, reuse, windows)
    chosen = _even(count, budget, forced)
    least = search.error(chosen)
    for _ in range(rounds):
        before = least
        for place in range(1, budget):
            for step in range(chosen[place] - REACH, chosen[place] + REACH + 1):
                other = sorted({*chosen[:place], step, *chosen[place + 1 :]})
                if len(other) < budget or not 0 <= step < count or not forced <= set(other):
                    continue
                error = search.error(other)
                if error < least:
                    least, chosen = error, other
                search.keep(chosen)
        if least == before:
            break
    return tuple(chosen)


def _forced(sigmas: Tensor, windows: Sequence[tuple[float, float]]) -> set[int]:
    """The steps that `Cached` computes in any case: the first of all, and of each side of a window."""
    kinds = [inside(level, windows) for level in sigmas.tolist()[:-1]]
    return {0, *(step for step, (before, kind) in enumerate(pairwise(kinds), 1) if before != kind)}


def _even(count: int, budget: int, forced: set[int]) -> list[int]:
    """Steps far from each other, the nearest of which gave way to those that are forced."""
    chosen = {round(float(place)) for place in torch.linspace(0, count - 1, budget)}
    for step in sorted(forced - chosen):
        chosen.remove(min(sorted(chosen - forced), key=lambda other: abs(other - step)))
        chosen.add(step)
    return sorted(chosen)


class _Search:
    """Runs with a choice of steps, and how far they end from the run that computes all."""

    def __init__(
        self,
        velocity: Velocity,
        noise: Tensor,
        sigmas: Tensor,
        reuse: Reuse,
        windows: Sequence[tuple[float, float]],
    ) -> None:
        self.velocity, self.noise, self.sigmas, self.windows = velocity, noise, sigmas, windows
        self.reuse: Reuse = reuse
        self.end = last(euler(velocity, noise, sigmas)).x
        self.known: dict[tuple[int, ...], float] = {}
        self.velocities: dict[tuple[int, ...], Tensor] = {}

    def error(self, steps: list[int]) -> float:
        """The root mean square over the starts."""
        key = tuple(steps)
        if key not in self.known:
            cached = Cached(
                _Known(self, key), self.sigmas, steps=steps, reuse=self.reuse, windows=self.windows
            )
            end = last(euler(cached, self.noise, self.sigmas)).x
            self.known[key] = float(rms(end - self.end).square().mean().sqrt())
        return self.known[key]

    def keep(self, chosen: list[int]) -> None:
        """Forget the velocities of other choices: a search computes hundreds, too many for a card."""
        begins = (tuple(chosen[:length]) for length in range(1, len(chosen) + 1))
        self.velocities = {begin: self.velocities[begin] for begin in begins if begin in self.velocities}


class _Known:
    """A velocity along a choice of steps: what was computed after the same steps before is not again."""

    def __init__(self, search: _Search, steps: tuple[int, ...]) -> None:
        self.search, self.steps, self.calls = search, steps, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        done, known = self.steps[: self.calls], self.search.velocities
        if done not in known:
            known[done] = self.search.velocity(x, sigma)
        return known[done]
