"""Inverses that were published as approximations. All follow the flow upward, over the flipped table.

    naive          the solver itself over the flipped sigmas: the common baseline
    uni_inv        Jiao et al. 2025 (UniEdit-Flow), arXiv:2504.13109, algorithm 1
    fixed_point    Pan et al. 2023 (AIDI), arXiv:2309.04907; Garibi et al. 2024 (ReNoise), arXiv:2403.14602

RF-Solver (arXiv:2411.04746) and FireFlow (arXiv:2412.07517) are `naive` with the solvers of those names.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..errors import FlowError, VelocityError
from ..solvers.base import Velocity, evaluate, prepare, watched
from ..solvers.table import lookup
from .report import InverseStep, StepReport


class Counted:
    """A velocity that counts its calls, as some solvers decide on them as they go."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity, self.calls = velocity, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Count, and pass on."""
        self.calls += 1
        return self.velocity(x, sigma)

    def since(self, before: int) -> int:
        """Calls beyond `before`."""
        return self.calls - before


def naive(
    velocity: Velocity, data: Tensor, sigmas: Tensor, *, solver: str = "euler", **options: Any
) -> Iterator[InverseStep]:
    """Run the solver over the flipped sigmas; Euler takes every velocity at the wrong end of its step."""
    counted, (_, table) = Counted(velocity), prepare(data, sigmas)
    levels = table.tolist()
    steps = lookup(solver).run(counted, data, sigmas.flip(0), **options)

    def inverse() -> Iterator[InverseStep]:
        before = 0
        end = len(sigmas) - 2  # solvers count upward here, and steps have the numbers of the generation
        try:
            for step in steps:
                made, before = counted.since(before), counted.calls
                number = end - step.number
                report = StepReport(number, levels[number], levels[number + 1], made)
                yield InverseStep(step.x, report)
        except VelocityError as error:
            raise error.at(end - error.number) from None

    return inverse()


@watched
def uni_inv(velocity: Velocity, data: Tensor, sigmas: Tensor) -> Iterator[InverseStep]:
    """Uni-Inv: look ahead with the velocity of the step before, and take the velocity there.

    u ← v(y - h u, σ);    x = y - h u        one evaluation a step, and one at the start
    """
    y, sigmas = prepare(data, sigmas)
    levels = sigmas.tolist()

    def inverse(y: Tensor) -> Iterator[InverseStep]:
        u = evaluate(velocity, y, sigmas[-1], len(sigmas) - 2)
        for number, sigma, sigma_next in _upward(sigmas):
            h = sigma_next - sigma
            u = evaluate(velocity, y - h * u, sigma, number)
            y = y - h * u
            made = 2 if number == len(sigmas) - 2 else 1
            yield InverseStep(y, StepReport(number, levels[number], levels[number + 1], made))

    return inverse(y)


@watched
def fixed_point(
    velocity: Velocity, data: Tensor, sigmas: Tensor, *, iterations: int = 4, average: bool = False
) -> Iterator[InverseStep]:
    """Iterate the Euler step's own equation, x ← y - h v(x, σ), a fixed number of times from x = y (AIDI).

    It converges only where |h| times the Lipschitz constant of v is below 1, which the last steps of a guided
    generation are not.

    Args:
        velocity: that of the generation.
        data: (B, *S).
        sigmas: those of the generation.
        iterations: evaluations a step.
        average: end each step with the mean of its velocities, the first left out, as ReNoise does.

    Raises:
        FlowError: fewer than 1 iteration, or 2 with the average; and as in `euler`.
    """
    y, sigmas = prepare(data, sigmas)
    if iterations < 1 + average:
        raise FlowError(f"iterations must be at least {1 + average}, got {iterations}")
    levels = sigmas.tolist()

    def inverse(y: Tensor) -> Iterator[InverseStep]:
        for number, sigma, sigma_next in _upward(sigmas):
            h, x, total = sigma_next - sigma, y, None
            for iteration in range(iterations):
                v = evaluate(velocity, x, sigma, number)
                x = y - h * v
                if iteration > 0:
                    total = v if total is None else total + v
            y = y - h * total / (iterations - 1) if average and total is not None else x
            yield InverseStep(y, StepReport(number, levels[number], levels[number + 1], iterations))

    return inverse(y)


def _upward(sigmas: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The generation's steps from the last to the first: number, sigma, sigma_next."""
    for number, (sigma, sigma_next) in reversed(list(enumerate(pairwise(sigmas)))):
        yield number, sigma, sigma_next
