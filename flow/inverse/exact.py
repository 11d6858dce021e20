"""The exact inverse of a generation by a one-step method: solve each of its steps for where it began.

A step is F(x) = x + h · slope(x) = y, and y is known. Each is solved as a fixed point, x = y - h ·
slope(x), with Anderson's acceleration (Walker & Ni 2011, SIAM J. Numer. Anal. 49, 1715), which also
converges where the plain iteration diverges, as it does in the last steps of a guided generation.

What the tolerance is worth depends on where it is spent: the last steps contract, so that on the way back
their errors are multiplied many times. It is proportional to σ^1.5.

How many times they are multiplied no residual tells: every step may converge and the noise be wrong. So two
ways are gone at once. A coarse one finds where the fine one should look. The fine one is solved to a part of
what they are apart, so that it says how far off the coarse one is, from step to step and in the end.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import FlowError
from ..path import per_sample, rms
from ..precision import as_float64
from ..solvers.base import Velocity, prepare
from ..solvers.runge_kutta import SLOPES, slope_of
from ..solvers.table import lookup
from .report import InverseStep, StepReport
from .search import Found, solve_step

COARSER = 10
"""How many times as large a tolerance the way has that is gone for comparison."""
SHARE = 0.1
"""Of what the two ways are expected to be apart: the finer one is solved to this where it is less than was
asked for. So their difference is the coarser one's error, however a step multiplies what is left of it."""
GROWTH = (0.3, 8.0)
"""Bounds on how the difference of two ways is expected to grow from one step to the next."""


def exact(
    velocity: Velocity,
    data: Tensor,
    sigmas: Tensor,
    *,
    solver: str = "euler",
    accuracy: float = 1e-4,
    max_evaluations: int = 30,
    check: bool = True,
) -> Iterator[InverseStep]:
    """Find the noise that a generation by Euler's or another one-step method started from.

    Evaluate the velocity in float32: the steps' contraction multiplies its rounding, and in bfloat16 that
    is the whole error. Iterates are kept in float64, on the CPU where the device has none.

    Args:
        velocity: that of the generation: same prompt, negative prompt and guidance.
        data: its last state, (B, *S).
        sigmas: its table.
        solver: how it was generated: euler, midpoint, heun or rk4.
        accuracy: the tolerance at σ = 1, of the residual's root mean square; σ^1.5 times that at σ. Smaller
            is more exact and costs more: on guided fields in closed form 1e-2 costs about 2 evaluations a
            step and 1e-5 about 4, on a network up to twice that. Each sample of a batch stops by itself, and
            costs no more from there on where the velocity has a method `part(samples)`, the velocity of some
            samples of the batch alone.
        max_evaluations: of the velocity, per step; a step that is not done by then is reported with how far
            it came. A trial of a beginning takes as many as a step of the solver: 1, 2, 2 and 4.
        check: go a coarser way too, with ten times the tolerance and data rounded otherwise, so that the
            report has what the noise is at least worth. Where a step multiplies errors, the noise becomes
            more exact by it than without. It costs about one evaluation a step.

    Raises:
        FlowError: a solver with memory or choices of its own; an accuracy below the rounding of the dtype, or
            no finite number; and as in `euler`. That a velocity is not finite where a sample's search strayed
            is no error: the sample is left at its best state, and its residual tells.
    """
    x, table = prepare(data, sigmas)
    if solver not in SLOPES:
        raise FlowError(
            f"the exact inverse needs a one-step solver, {', '.join(SLOPES)}; {solver!r} cannot be undone "
            "from its last state alone. Generate with a reversible solver, or use method='naive', many steps"
        )
    rounding = torch.finfo(x.dtype).eps
    if not rounding <= accuracy < math.inf:
        raise FlowError(
            f"accuracy must be at least {rounding:.1e}, the rounding of {x.dtype}; got {accuracy:g}"
        )
    cost = lookup(solver).evaluations
    assert cost is not None
    if max_evaluations < cost:
        raise FlowError(
            f"max_evaluations must be at least {cost}, one step of {solver}; got {max_evaluations}"
        )
    trials = max_evaluations // cost
    return _inverse(velocity, solver, x, table, accuracy, trials, check and trials > 1)


class _Trials:
    """A velocity at the states of a search, of those samples that are still searched for.

    At the first trial it must be finite, except in samples that are lost already.

    Attributes:
        rows: the samples that states are given of, (b,).
        calls: of each sample, (B,).
        failed: the samples for which it was not finite, (B,).
    """

    def __init__(
        self, velocity: Velocity, filling: Tensor, lost: Tensor, solver: str, levels: Tensor, number: int
    ) -> None:
        self._velocity, self._filling = velocity, filling
        self._slope, self._levels, self._number = slope_of(solver, float(levels[1])), levels, number
        self.is_first, self.lost = True, lost
        self.rows = torch.arange(len(lost))
        self.calls = torch.zeros_like(lost, dtype=torch.long)
        self.failed = torch.zeros_like(lost)

    def mean_slope(self, x: Tensor, rows: Tensor) -> Tensor:
        """The slope of the step from states of some samples, NaN where the velocity was not finite."""
        self.rows = rows.cpu()
        sigma, sigma_next = self._levels
        mean = as_float64(self._slope(self, x.to(self._filling), sigma, sigma_next, self._number)[1])
        self.is_first = False
        failed = self.failed[self.rows]
        return mean.masked_fill(per_sample(failed, mean).bool(), math.nan)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Note the samples for which it is not finite, and pass on what can be computed with."""
        self.calls[self.rows] += 1
        v = self._of_rows(x, sigma)
        if v.shape != x.shape:
            return v
        finite = v.flatten(1).isfinite().all(1)
        failed = ~finite.cpu()
        if self.is_first and (failed & ~self.lost[self.rows]).any():
            return v
        self.failed[self.rows] |= failed
        return v.where(per_sample(finite, v).bool(), 0)

    def _of_rows(self, x: Tensor, sigma: Tensor) -> Tensor:
        if len(self.rows) == len(self.lost):
            return self._velocity(x, sigma)
        part = getattr(self._velocity, "part", None)
        if part is not None:
            return part(self.rows.tolist())(x, sigma)
        rows = self.rows.to(x.device)
        whole = self._filling.index_copy(0, rows, x)
        return self._velocity(whole, sigma[:1].expand(len(whole)))[rows]


class _Way:
    """A way up, step by step.

    Attributes:
        y: where it has come to, (B, *S) float64.
        lost: samples that were given up in some step.
        slope: of the step that it took last, (B, *S).
    """

    def __init__(self, velocity: Velocity, solver: str, data: Tensor, accuracy: float) -> None:
        self.velocity, self.solver, self.accuracy = velocity, solver, accuracy
        self.y, self.like = as_float64(data), data
        self.lost = torch.zeros(len(data), dtype=torch.bool, device="cpu")
        self.past: list[tuple[float, Tensor]] = []  # what was not foreseen of the last two slopes

    def climb(
        self, levels: Tensor, number: int, trials: int, beside: "_Way | None" = None
    ) -> tuple[Found, Tensor, float]:
        """Invert a step: where it began, the calls of each sample, and the tolerance.

        Args:
            levels: of the step, (2,).
            number: of the step.
            trials: at most.
            beside: a way that has taken this step and was coarser.
        """
        sigma, sigma_next = levels.tolist()
        h, tolerance = sigma_next - sigma, self.accuracy * sigma**1.5
        lost = self.lost if beside is None else self.lost | beside.lost
        trial = _Trials(self.velocity, self.y.to(self.like), lost, self.solver, levels, number)
        guess = _extrapolated(self.past, sigma) if beside is None else beside.slope + _grown(self.past)
        within = torch.full_like(rms(self.y), tolerance)
        if beside is not None:
            share = SHARE * rms(self.y - h * guess - beside.y)
            rounding = torch.finfo(self.like.dtype).eps * rms(self.y)
            within = within.minimum(share.maximum(rounding))
        found = solve_step(trial.mean_slope, self.y, h, guess, within, trials)
        self.slope = (self.y - found.x) / h
        unforeseen = self.slope if beside is None else self.slope - beside.slope
        self.past = [*self.past[-1:], (sigma, unforeseen)]
        self.y, self.lost = found.x, self.lost | found.lost.cpu()
        return found, trial.calls, tolerance


def _inverse(
    velocity: Velocity, solver: str, data: Tensor, sigmas: Tensor, accuracy: float, trials: int, check: bool
) -> Iterator[InverseStep]:
    fine = _Way(velocity, solver, data, accuracy)
    coarse = _Way(velocity, solver, _rounded(data), COARSER * accuracy) if check else None
    for number in reversed(range(len(sigmas) - 1)):
        levels = sigmas[number : number + 2]
        if coarse is None:
            found, made, tolerance = fine.climb(levels, number, trials)
            evaluations, stretch, apart = int(made.max()), found.stretch, None
        else:
            met, before, _ = coarse.climb(levels, number, trials // 2)
            found, calls, tolerance = fine.climb(levels, number, trials - trials // 2, coarse)
            evaluations, made = int(before.max()) + int(calls.max()), before + calls
            stretch = torch.minimum(met.stretch, found.stretch)  # the coarse search is the one that went far
            apart = tuple(rms(fine.y - coarse.y).tolist())
        sigma, sigma_next = levels.tolist()
        report = StepReport(
            number,
            sigma,
            sigma_next,
            evaluations,
            tuple(found.residual.tolist()),
            tolerance,
            tuple(stretch.tolist()),
            made=tuple(made.tolist()),
            apart=apart,
        )
        yield InverseStep(fine.y.to(data), report)


def _rounded(data: Tensor) -> Tensor:
    """Data that are as good as these, so that two ways from them differ by what their rounding costs."""
    draw = torch.Generator().manual_seed(0)  # for every sample the same, whatever stands beside it
    signs = torch.randint(2, data.shape[1:], generator=draw).to(data) * 2 - 1
    return data + torch.finfo(data.dtype).eps * per_sample(rms(data), data) * signs


def _grown(past: list[tuple[float, Tensor]]) -> Tensor | float:
    """The difference of two ways' slopes that is expected next: it grows as it did, in its own direction."""
    if len(past) < 2:
        return past[0][1] if past else 0.0
    (_, far), (_, near) = past
    growth = (near * far).flatten(1).sum(1) / far.square().flatten(1).sum(1).clamp_min(1e-300)
    return per_sample(growth.clamp(*GROWTH), near) * near


def _extrapolated(past: list[tuple[float, Tensor]], sigma: float) -> Tensor | None:
    """The slope expected at `sigma`, on the line through those of the last two steps."""
    if len(past) < 2:
        return past[0][1] if past else None
    (sigma_far, far), (sigma_near, near) = past
    return near + (sigma - sigma_near) / (sigma_near - sigma_far) * (near - far)
