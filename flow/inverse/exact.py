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
from ..solvers.base import Velocity, prepare
from ..solvers.runge_kutta import SLOPES, Slope
from .approximate import Counted
from .report import InverseStep, StepReport

WINDOW = 3
"""Differences that Anderson's method keeps; with more it fits their rounding."""
PATIENCE = 8
"""Evaluations without a tenth off the residual after which a step is given up: it stands at its noise."""
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
    is the whole error. Iterates are kept in float64 where the device has it.

    Args:
        velocity: that of the generation: same prompt, negative prompt and guidance.
        data: its last state, (B, *S).
        sigmas: its table.
        solver: how it was generated: euler, midpoint, heun or rk4.
        accuracy: the tolerance at σ = 1, of the residual's root mean square; σ^1.5 times that at σ. Smaller
            is more exact and costs more: on guided fields 1e-2 costs about 2 evaluations a step, 1e-5 about
            4.
        max_evaluations: per step; a step that is not done by then is reported with how far it came.

    Raises:
        FlowError: a solver with memory or choices of its own; an accuracy below the rounding of the dtype;
            and as in `euler`.
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
    if max_evaluations < 1:
        raise FlowError(f"max_evaluations must be at least 1, got {max_evaluations}")
    return _inverse(velocity, SLOPES[solver], x, table, accuracy, max_evaluations)


def _inverse(
    velocity: Velocity, slope: Slope, y: Tensor, sigmas: Tensor, accuracy: float, max_evaluations: int
) -> Iterator[InverseStep]:
    dtype = y.dtype
    y = y.to(torch.float32 if y.device.type == "mps" else torch.float64)
    past: list[tuple[float, Tensor]] = []  # slopes of the last two steps inverted, and their sigmas
    for number in reversed(range(len(sigmas) - 1)):
        sigma, sigma_next = sigmas[number], sigmas[number + 1]
        h = float(sigma_next) - float(sigma)
        counted = Counted(velocity)

        def mean_slope(x: Tensor, counted: Velocity = counted, number: int = number) -> Tensor:
            return slope(counted, x.to(dtype), sigmas[number], sigmas[number + 1], number)[1].to(x)

        tolerance = accuracy * float(sigma) ** 1.5
        found = solve_step(mean_slope, y, h, _extrapolated(past, float(sigma)), tolerance, max_evaluations)
        past = [*past[-1:], (float(sigma), (y - found.x) / h)]
        y = found.x
        report = StepReport(
            number,
            float(sigma),
            float(sigma_next),
            counted.calls,
            tuple(found.residual.tolist()),
            tolerance,
            tuple(found.stretch.tolist()),
        )
        yield InverseStep(y.to(dtype), report)


def _extrapolated(past: list[tuple[float, Tensor]], sigma: float) -> Tensor | None:
    """The slope expected at `sigma`, on the line through those of the last two steps."""
    if len(past) < 2:
        return past[0][1] if past else None
    (sigma_far, far), (sigma_near, near) = past
    return near + (sigma - sigma_near) / (sigma_near - sigma_far) * (near - far)


@dataclass
class _Found:
    """Where the search for a step's beginning stands."""

    x: Tensor  # (B, *S)
    residual: Tensor  # (B,), the least so far
    stretch: Tensor  # (B,)


@dataclass
class _Window:
    """The last iterates x and their images G(x) = y - h · slope(x), flat, (B, D)."""

    xs: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor, image: Tensor) -> None:
        self.xs, self.images = [*self.xs, x][-WINDOW - 1 :], [*self.images, image][-WINDOW - 1 :]

    def next(self) -> Tensor:
        """Anderson's update: the images, combined to make their residuals least (type II, no damping)."""
        residuals = torch.stack([image - x for x, image in zip(self.xs, self.images, strict=True)], -1)
        if len(self.xs) == 1:
            return self.images[0]
        images = torch.stack(self.images, -1).diff(dim=-1)  # (B, D, m)
        differences = residuals.diff(dim=-1)
        # Scaled columns, so that differences of very unlike sizes are fitted alike.
        size = differences.norm(dim=1, keepdim=True).clamp_min(torch.finfo(residuals.dtype).tiny)
        scaled = differences / size
        gram = scaled.mT @ scaled
        ridge = REGULARISATION * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.lstsq(gram + ridge, scaled.mT @ residuals[..., -1:]).solution
        return self.images[-1] - (images / size @ weights)[..., 0]

    def stretch(self) -> Tensor:
        """⟨Δx, ΔF⟩ / ⟨Δx, Δx⟩ over the last move, of F = x - G + y: (B,); infinite if there was none."""
        if len(self.xs) < 2:
            return torch.full_like(self.xs[0][:, 0], math.inf)
        move = self.xs[-1] - self.xs[-2]
        length = move.square().sum(1)
        ratio = 1 - (move * (self.images[-1] - self.images[-2])).sum(1) / length
        # Moves within the rounding of x say nothing of F.
        rounding = 1e3 * torch.finfo(torch.float32).eps
        return torch.where(length > rounding**2 * self.xs[-1].square().sum(1), ratio, math.inf)


def solve_step(
    mean_slope: Callable[[Tensor], Tensor],
    y: Tensor,
    h: float,
    guess: Tensor | None,
    tolerance: float,
    max_evaluations: int,
) -> _Found:
    """Solve x + h · mean_slope(x) = y for x.

    Ends when every sample's residual is within the tolerance. Then the update from there is returned, which
    costs no evaluation and is better by about the factor that the last one gained. Samples that did not get
    there keep their best measured state.
    """
    x, window = (y if guess is None else y - h * guess), _Window()
    size = math.sqrt(y[0].numel())
    best = None
    stalled, mark = 0, math.inf
    for _ in range(max_evaluations):
        image = y - h * mean_slope(x)
        window.add(x.flatten(1), image.flatten(1))
        residual = (image - x).flatten(1).norm(dim=1) / size
        update = window.next().reshape(y.shape)
        if best is None:
            best = _Found(x, residual, window.stretch())
        else:
            better = residual < best.residual
            best.x = torch.where(better.reshape(-1, *(1,) * (y.ndim - 1)), x, best.x)
            best.residual = torch.minimum(residual, best.residual)
            best.stretch = torch.minimum(window.stretch(), best.stretch)
        worst = float(best.residual.max())
        if (residual <= tolerance).all():
            return _Found(update, residual, best.stretch)
        stalled, mark = (0, worst) if worst < 0.9 * mark else (stalled + 1, mark)
        if stalled >= PATIENCE:
            break
        x = update
    assert best is not None
    return best
