"""The exact inverse of a generation by a one-step method: solve each of its steps for where it began.

A step is F(x) = x + h · slope(x) = y, and y is known. Each is solved as a fixed point, x = y - h ·
slope(x), with Anderson's acceleration (Walker & Ni 2011, SIAM J. Numer. Anal. 49, 1715), which also
converges where the plain iteration diverges, as it does in the last steps of a guided generation.

What the tolerance is worth depends on where it is spent: the last steps contract, so that on the way back
their errors are multiplied many times. It is proportional to σ^1.5.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import FlowError
from ..path import per_sample
from ..precision import as_float64
from ..solvers.base import Velocity, prepare
from ..solvers.runge_kutta import SLOPES, Slope, slope_of
from ..solvers.table import lookup
from .approximate import Counted
from .report import InverseStep, StepReport

WINDOW = 3
"""Differences that Anderson's method keeps; with more it fits their rounding."""
MEMORY = 16
"""Iterates that are kept to see whether a step folds."""
SHORTEST = 1e-3
"""Of moves that count for that, relative to x."""
PATIENCE = 8
"""Trials without a tenth off the residual after which a step is given up: it stands at its noise."""
RUNAWAY = 1e4
"""Times its least residual, beyond which a sample's search is given up: it will not come back."""
REGULARISATION = 1e-12
"""Of the least-squares problem, relative to its size."""


def exact(
    velocity: Velocity,
    data: Tensor,
    sigmas: Tensor,
    *,
    solver: str = "euler",
    accuracy: float = 1e-4,
    max_evaluations: int = 30,
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
            step and 1e-5 about 4, on a network up to twice that. In a batch all samples are improved until
            the last is done.
        max_evaluations: of the velocity, per step; a step that is not done by then is reported with how far
            it came. A trial of a beginning takes as many as a step of the solver: 1, 2, 2 and 4.

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
    return _inverse(velocity, solver, x, table, accuracy, max_evaluations // cost)


class _Trials(Counted):
    """A velocity at the states of a search. At the first it must be finite, but for samples already lost."""

    def __init__(self, velocity: Velocity, lost: Tensor) -> None:
        super().__init__(velocity)
        self.is_first = True
        self.lost = lost
        self.failed = torch.zeros_like(lost)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Note the samples for which it is not finite, and pass on what can be computed with."""
        v = super().__call__(x, sigma)
        if v.shape != x.shape:
            return v
        finite = v.flatten(1).isfinite().all(1)
        failed = ~finite.cpu()
        if self.is_first and (failed & ~self.lost).any():
            return v
        self.failed |= failed
        return v.where(per_sample(finite, v).bool(), 0)


def _inverse(
    velocity: Velocity, solver: str, data: Tensor, sigmas: Tensor, accuracy: float, trials: int
) -> Iterator[InverseStep]:
    y, levels = as_float64(data), sigmas.tolist()
    lost = torch.zeros(len(data), dtype=torch.bool, device="cpu")  # samples that were given up in some step
    past: list[tuple[float, Tensor]] = []  # slopes of the last two steps inverted, and their sigmas
    for number in reversed(range(len(sigmas) - 1)):
        sigma, sigma_next = levels[number], levels[number + 1]
        slope, trial = slope_of(solver, sigma_next), _Trials(velocity, lost)

        def mean_slope(
            x: Tensor, slope: Slope = slope, trial: _Trials = trial, number: int = number
        ) -> Tensor:
            mean = as_float64(slope(trial, x.to(data), sigmas[number], sigmas[number + 1], number)[1])
            trial.is_first = False
            return mean.masked_fill(per_sample(trial.failed, mean).bool(), math.nan)

        h, tolerance = sigma_next - sigma, accuracy * sigma**1.5
        found = solve_step(mean_slope, y, h, _extrapolated(past, sigma), tolerance, trials)
        past = [*past[-1:], (sigma, (y - found.x) / h)]
        y, lost = found.x, lost | found.lost.cpu()
        residual, stretch = tuple(found.residual.tolist()), tuple(found.stretch.tolist())
        report = StepReport(number, sigma, sigma_next, trial.calls, residual, tolerance, stretch)
        yield InverseStep(y.to(data), report)


def _extrapolated(past: list[tuple[float, Tensor]], sigma: float) -> Tensor | None:
    """The slope expected at `sigma`, on the line through those of the last two steps."""
    if len(past) < 2:
        return past[0][1] if past else None
    (sigma_far, far), (sigma_near, near) = past
    return near + (sigma - sigma_near) / (sigma_near - sigma_far) * (near - far)


@dataclass
class _Found:
    """Where the search for a step's beginning ended."""

    x: Tensor  # (B, *S)
    residual: Tensor  # (B,), the least that was measured
    stretch: Tensor  # (B,)
    lost: Tensor  # (B,), bool: given up


@dataclass
class _Iterates:
    """The last iterates x and their images G(x) = y - h · slope(x), flat, (B, D)."""

    xs: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor, image: Tensor) -> None:
        self.xs, self.images = [*self.xs, x][-MEMORY:], [*self.images, image][-MEMORY:]

    def next(self) -> Tensor:
        """Anderson's update: the images, combined to make their residuals least (type II, no damping)."""
        xs, images = torch.stack(self.xs[-WINDOW - 1 :], -1), torch.stack(self.images[-WINDOW - 1 :], -1)
        if xs.shape[-1] == 1:
            return self.images[-1]
        residual, differences = self.images[-1] - self.xs[-1], (images - xs).diff(dim=-1)
        # Scaled columns, so that differences of very unlike sizes are fitted alike.
        size = differences.norm(dim=1, keepdim=True).clamp_min(torch.finfo(differences.dtype).tiny)
        scaled = differences / size
        gram = scaled.mT @ scaled
        ridge = REGULARISATION * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.lstsq(gram + ridge, scaled.mT @ residual[..., None]).solution
        return self.images[-1] - (images.diff(dim=-1) / size @ weights)[..., 0]

    def stretch(self) -> Tensor:
        """The least ⟨e, F' e⟩ over unit directions e that the search went in, F = x - G + y: (B,).

        It is the smallest Ritz value of the symmetric part of F', from the differences at hand, so it costs
        no evaluation. It takes F' for constant over the search; where a step is strongly curved it may be too
        low. (The end of the search alone would not do: where a step folds, a wrong beginning is found on the
        side of the fold on which F' is positive.) Infinite if there was one iterate.
        """
        end = self.xs[-1]
        if len(self.xs) == 1:
            return torch.full_like(end[:, 0], math.inf)
        moves = torch.stack(self.xs[:-1], -1) - end[..., None]  # (B, D, m)
        pushes = moves - (torch.stack(self.images[:-1], -1) - self.images[-1][..., None])
        size = moves.norm(dim=1, keepdim=True)
        # A move within the rounding of a float32 velocity says nothing of F'.
        size = torch.where(size > SHORTEST * end.norm(dim=1)[:, None, None], size, math.inf)
        moves, pushes = moves / size, pushes / size
        squares, directions = torch.linalg.eigh(moves.mT @ moves)
        known = squares > 1e-4 * squares[:, -1:].clamp_min(1e-4)  # directions that the moves really span
        basis = directions * torch.where(known, squares, math.inf).rsqrt()[:, None, :]
        ritz = basis.mT @ (moves.mT @ pushes) @ basis
        unknown = torch.zeros_like(squares).masked_fill(~known, 1e9).diag_embed()
        least = torch.linalg.eigvalsh((ritz + ritz.mT) / 2 + unknown)[:, 0]
        return torch.where(known.any(1), least, math.inf)


def solve_step(
    mean_slope: Callable[[Tensor], Tensor],
    y: Tensor,
    h: float,
    guess: Tensor | None,
    tolerance: float,
    trials: int,
) -> _Found:
    """Solve x + h · mean_slope(x) = y for x.

    Ends when every sample's residual is within the tolerance. Then the update from there is returned, which
    costs no evaluation and is better by about the factor that the last one gained. Where that is not reached,
    each sample has its best measured state.

    A sample is given up, and stays at that, where its residual runs away or `mean_slope` is NaN.
    """
    x, iterates = (y if guess is None else y - h * guess), _Iterates()
    best, best_image = x, x
    least = torch.full_like(y.flatten(1)[:, 0], math.inf)
    lost = torch.zeros_like(least, dtype=torch.bool)
    stalled, mark = 0, math.inf
    for _ in range(trials):
        image = y - h * mean_slope(x)
        residual = (image - x).flatten(1).square().mean(1).sqrt()
        lost |= ~(residual <= RUNAWAY * least)  # as NaN is
        is_better = per_sample(~lost & (residual < least), y).bool()
        best, best_image = x.where(is_better, best), image.where(is_better, best_image)
        least = torch.minimum(residual, least).where(~lost, least)
        given_up = per_sample(lost, y).bool()
        x, image = best.where(given_up, x), best_image.where(given_up, image)
        iterates.add(x.flatten(1), image.flatten(1))
        x = best.where(given_up, iterates.next().reshape(y.shape))
        if (lost | (residual <= tolerance)).all():
            return _Found(x, residual.where(~lost, least), iterates.stretch(), lost)
        worst = float(least[~lost].max())
        stalled, mark = (0, worst) if worst < 0.9 * mark else (stalled + 1, mark)
        if stalled >= PATIENCE:
            break
    return _Found(best, least, iterates.stretch(), lost)
