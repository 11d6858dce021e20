"""The solvers by name, and how to run one of them to its end."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..errors import FlowError
from .base import Step, Velocity, last
from .runge_kutta import euler


@dataclass(frozen=True)
class Solver:
    """A solver and what a user needs to know to choose it."""

    run: Callable[..., Iterator[Step]]
    """run(velocity, x, sigmas, **options) yields steps."""
    order: int
    """The error at the end shrinks as (1 / steps) to this power."""
    evaluations: int | None
    """Calls of the velocity per step; None where the solver decides as it goes."""
    summary: str


SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {
        "euler": Solver(euler, 1, 1, "straight lines; what SD3.5 is usually run with"),
    }
)


def lookup(solver: str) -> Solver:
    """The entry of SOLVERS of that name.

    Raises:
        FlowError: there is none; the message lists those that are.
    """
    if solver not in SOLVERS:
        raise FlowError(f"there is no solver {solver!r}; choose one of {', '.join(SOLVERS)}")
    return SOLVERS[solver]


def solve(velocity: Velocity, x: Tensor, sigmas: Tensor, solver: str = "euler", **options: Any) -> Tensor:
    """Follow the ODE from `sigmas[0]` to `sigmas[-1]` and return the last state.

    Args:
        velocity: called as velocity(x, sigma), sigma being (B,).
        x: the state at `sigmas[0]`, (B, *S).
        sigmas: noise levels in [0, 1], (steps + 1,), falling or rising.
        solver: a name in SOLVERS.
        options: keyword arguments of that solver.

    Returns:
        The state at `sigmas[-1]`, (B, *S), float32 or better.

    Raises:
        FlowError: an unknown solver, or what the solver refuses.
    """
    return last(lookup(solver).run(velocity, x, sigmas, **options)).x
