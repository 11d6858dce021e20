"""The search for where one step of a generation began: Anderson's method, each sample by itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..path import per_sample, rms

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


@dataclass
class Found:
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

    def keep(self, kept: Tensor) -> None:
        self.xs, self.images = [x[kept] for x in self.xs], [image[kept] for image in self.images]

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
    mean_slope: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    h: float,
    guess: Tensor | None,
    tolerance: Tensor,
    trials: int,
) -> Found:
    """Solve x + h · mean_slope(x) = y for x, each sample until its own residual is within the tolerance.

    Then the update from there is taken, which costs no evaluation and is better by about the factor that the
    last one gained. Where the tolerance is not reached, a sample has its best measured state.

    A sample is given up, and stays at that, where its residual runs away or `mean_slope` is NaN.

    Args:
        mean_slope: called as mean_slope(x, rows): the states of some samples, and their numbers.
        y: where the step ended, (B, *S).
        h: the step's length.
        guess: the slope expected, (B, *S); None is none.
        tolerance: of the residual, (B,).
        trials: at most.
    """
    start = y if guess is None else y - h * guess
    zeros = torch.zeros_like(y.flatten(1)[:, 0])
    found = Found(start.clone(), zeros + math.inf, zeros + math.inf, zeros > 0)
    search = _Search(start, torch.arange(len(y), device=y.device))
    for trial in range(trials):
        image = y[search.rows] - h * mean_slope(search.x, search.rows)
        left = tolerance[search.rows]
        done = search.take(image, left) | (trial == trials - 1)
        search.settle(done, left, found)
        search.keep(~done)
        if not len(search.rows):
            break
    return found


class _Search:
    """The search for the beginnings of one step, of the samples that have not found theirs."""

    def __init__(self, start: Tensor, rows: Tensor) -> None:
        self.x, self.rows = start, rows
        self.iterates = _Iterates()
        self.best = start
        self.residual = self.least = self.mark = torch.full_like(start.flatten(1)[:, 0], math.inf)
        self.lost = torch.zeros_like(self.least, dtype=torch.bool)
        self.stalled = torch.zeros_like(self.least, dtype=torch.long)

    def take(self, image: Tensor, tolerance: Tensor) -> Tensor:
        """Note what a trial gave, and move on; the samples whose search is over, (b,)."""
        residual = rms(image - self.x)
        self.lost = ~(residual <= RUNAWAY * self.least)  # as NaN is
        is_better = ~self.lost & (residual < self.least)
        self.best = self.x.where(per_sample(is_better, image).bool(), self.best)
        self.residual = residual
        self.least = residual.where(is_better, self.least)
        usable = per_sample(~self.lost, image).bool()
        self.iterates.add(self.x.where(usable, 0).flatten(1), image.where(usable, 0).flatten(1))
        self.x = self.iterates.next().reshape(image.shape)
        gains = self.least < 0.9 * self.mark
        self.stalled = (self.stalled + 1).where(~gains, 0)
        self.mark = self.least.where(gains, self.mark)
        return self.lost | (residual <= tolerance) | (self.stalled >= PATIENCE)

    def settle(self, done: Tensor, tolerance: Tensor, found: Found) -> None:
        """Write down what was found for the samples whose search is over."""
        converged = ~self.lost & (self.residual <= tolerance)
        rows = self.rows[done]
        found.x[rows] = self.x.where(per_sample(converged, self.x).bool(), self.best)[done]
        found.residual[rows] = self.residual.where(converged, self.least)[done]
        found.stretch[rows] = self.iterates.stretch()[done]
        found.lost[rows] = self.lost[done]

    def keep(self, kept: Tensor) -> None:
        """Go on with these samples alone."""
        for name in ("x", "rows", "best", "residual", "least", "mark", "lost", "stalled"):
            setattr(self, name, getattr(self, name)[kept])
        self.iterates.keep(kept)
