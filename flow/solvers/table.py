"""The solvers by name, and how to run one of them to its end."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from math import isfinite
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..errors import FlowError
from ..show import shown
from .adaptive import dopri5
from .base import Step, Velocity, last, prepare
from .bitexact import bitexact, undo_bitexact
from .companion import Companion, settings_of
from .multistep import ab2, dpmpp_2m, fireflow, flow_dpmpp_2m
from .reversible import leapfrog, reversible_heun, undo_leapfrog, undo_reversible_heun
from .rex import rex, undo_rex
from .runge_kutta import euler, heun, midpoint, rk4
from .stochastic import sde
from .two_step import bdia, obelm, undo_bdia, undo_obelm


@dataclass(frozen=True)
class Solver:
    """A solver and what a user needs to know to choose it."""

    run: Callable[..., Iterator[Step]]
    """run(velocity, x, sigmas, **options) yields steps."""
    order: int
    """The error at the end shrinks as (1 / steps) to this power, once steps are short."""
    evaluations: int | None
    """Calls of the velocity per step; None where the solver decides as it goes."""
    startup: int
    """Calls beside those, once, when falling to 0; below 0 where the last step takes fewer."""
    summary: str
    """One line for a user."""
    undo: Callable[..., Iterator[Step]] | None = None
    """undo(velocity, x, companion, sigmas, **options) yields the steps back; None where there is no way."""
    stochastic: bool = False
    """Draws noise from a `generator`, and knows the log-probability of each step."""

    @property
    def reversible(self) -> bool:
        """Whether a generation can be undone from its last state and its companion."""
        return self.undo is not None


SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {
        "euler": Solver(euler, 1, 1, 0, "straight lines; what diffusers runs SD3.5 with"),
        "midpoint": Solver(midpoint, 2, 2, 0, "the velocity from the middle of each step (RF-Solver)"),
        "heun": Solver(heun, 2, 2, 0, "the mean of the velocities at both ends"),
        "rk4": Solver(rk4, 4, 4, 0, "classical Runge-Kutta"),
        "ab2": Solver(ab2, 2, 1, 0, "Adams-Bashforth: Euler corrected by the step before"),
        "fireflow": Solver(fireflow, 2, 1, 1, "midpoint that reuses the last middle velocity"),
        "dpmpp_2m": Solver(dpmpp_2m, 2, 1, 0, "DPM-Solver++(2M) in -log sigma, as Stability runs SD3.5"),
        "flow_dpmpp_2m": Solver(flow_dpmpp_2m, 2, 1, 0, "DPM-Solver++(2M) in the log-SNR of the flow"),
        "dopri5": Solver(dopri5, 5, None, 1, "adaptive Dormand-Prince 5(4), to rtol and atol"),
        "sde": Solver(sde, 1, 1, 0, "stochastic, with log-probabilities (Flow-GRPO)", stochastic=True),
        "reversible_heun": Solver(
            reversible_heun, 2, 1, 0, "can be undone, to rounding", undo_reversible_heun
        ),
        "leapfrog": Solver(
            leapfrog, 1, 1, 1, "asynchronous leapfrog: can be undone, to rounding", undo_leapfrog
        ),
        "bdia": Solver(bdia, 1, 1, 0, "bidirectional: can be undone, to rounding", undo_bdia),
        "obelm": Solver(obelm, 2, 1, 0, "clipped O-BELM: can be undone, to rounding", undo_obelm),
        "rex": Solver(rex, 1, 2, -1, "Rex, of Euler's method: can be undone, to rounding", undo_rex),
        "bitexact": Solver(
            bitexact, 2, 1, 1, "reversible Heun in integers: can be undone to the last bit", undo_bitexact
        ),
    }
)


@dataclass(frozen=True, repr=False)
class Solution:
    """The end of a run, and what a run leaves beside it."""

    x: Tensor
    """The state at `sigmas[-1]`, (B, *S), float32 or better."""
    companion: Companion | None
    """What `invert` needs beside `x` to return; of reversible solvers."""
    log_prob: Tensor | None
    """The log-density of the whole path given its start, (B,); of stochastic solvers."""

    def __repr__(self) -> str:
        return shown(self)


def lookup(solver: str) -> Solver:
    """The entry of SOLVERS of that name.

    Raises:
        FlowError: there is none; the message lists those that are.
    """
    if solver not in SOLVERS:
        raise FlowError(f"there is no solver {solver!r}; choose one of {', '.join(SOLVERS)}")
    return SOLVERS[solver]


def check_options(what: str, run: Callable[..., object], options: Mapping[str, object]) -> None:
    """See that a solver or a method takes these options, its keyword arguments, and that numbers are numbers.

    Raises:
        FlowError: it does not; the message names `what`, the option, and what it takes.
    """
    parameters = signature(run).parameters.values()
    takes = {one.name: one.annotation for one in parameters if one.kind is Parameter.KEYWORD_ONLY}
    takes.pop("solver", None)  # which is given beside the options
    for name, value in options.items():
        if name not in takes:
            raise FlowError(f"{what} takes no option {name!r}; it takes {', '.join(takes) or 'none'}")
        words, fits = KINDS.get(takes[name], ("", lambda value: True))
        if not fits(value):
            raise FlowError(f"option {name!r} of {what} must be {words}, got {value!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


KINDS: Mapping[type, tuple[str, Callable[[object], bool]]] = MappingProxyType(
    {
        int: ("a whole number", _is_whole),
        float: ("a finite number", _is_number),
        bool: ("true or false", lambda value: isinstance(value, bool)),
    }
)
"""What an option may be, by its annotation."""


def started(
    velocity: Velocity, x: Tensor, sigmas: Tensor, solver: str, options: Mapping[str, Any]
) -> Iterator[Step]:
    """The steps of the solver of that name.

    Raises:
        FlowError: an unknown solver or option, a stochastic solver without a generator, or what the solver
            refuses.
    """
    entry = lookup(solver)
    check_options(f"solver {solver!r}", entry.run, options)
    if entry.stochastic and "generator" not in options:
        raise FlowError(f"solver {solver!r} draws noise at every step: pass generator=, a torch.Generator")
    return entry.run(velocity, x, sigmas, **options)


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
        FlowError: an unknown solver or option, a stochastic solver without a generator, or what the solver
            refuses.
    """
    return last(started(velocity, x, sigmas, solver, options)).x


def integrate(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor,
    solver: str = "euler",
    *,
    extra: Mapping[str, Any] | None = None,
    **options: Any,
) -> Solution:
    """`solve`, keeping what lies beside the last state: the companion or the log-probability.

    Args:
        velocity: as in `solve`.
        x: as in `solve`.
        sigmas: as in `solve`.
        solver: as in `solve`.
        extra: JSON values that make the velocity what it is, such as the prompt, the guidance scale and the
            model. They go into the companion, which then refuses to be used with others.
        options: keyword arguments of the solver; JSON values for a reversible one.

    Raises:
        FlowError: as in `solve`, or settings that are not JSON.
    """
    log_prob, step = None, None
    for step in started(velocity, x, sigmas, solver, options):
        if step.log_prob is not None:
            log_prob = step.log_prob if log_prob is None else log_prob + step.log_prob
    assert step is not None
    return Solution(step.x, companion_of(step, sigmas, solver, extra=extra, **options), log_prob)


def companion_of(
    step: Step, sigmas: Tensor, solver: str, *, extra: Mapping[str, Any] | None = None, **options: Any
) -> Companion | None:
    """The companion of the last step of a run that the caller steps through; None of a solver without.

    Args:
        step: the last step.
        sigmas: those that the solver was given.
        solver: its name in SOLVERS.
        extra: as in `integrate`.
        options: the keyword arguments that the solver was given.
    """
    if step.companion is None:
        return None
    _, table = prepare(step.x, sigmas)
    companion = Companion(step.companion, settings_of(solver, options, step.x, table, extra or {}))
    companion.fingerprint  # noqa: B018 - a setting that is not JSON raises here, not when it is too late
    return companion
