"""From data back to noise, by any of the methods, under one signature."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..cache import Cached
from ..errors import FlowError
from ..solvers.base import Velocity, prepare
from ..solvers.companion import Companion, settings_of
from ..solvers.table import check_options, lookup
from .approximate import Counted, fixed_point, naive, uni_inv
from .exact import exact
from .report import InverseStep, Inversion, Report, StepReport

ROUNDING = 1000
"""How far an undoing may end from a beginning, in units of the dtype's rounding. Over 28 steps, of fields in
closed form and of the embedded model, the generation's own velocity in float32 or better stays below 300;
bfloat16 in place of float32 begins at 4,000, another prompt at 10,000. Half a point of guidance passes on
some samples: it nearly cancels."""


@dataclass(frozen=True)
class Method:
    """A way back, and what a user needs to know to choose it."""

    run: Callable[..., Iterator[InverseStep]]
    """run(velocity, data, sigmas, **options) yields steps."""
    takes_solver: bool
    """Whether `solver` says how the data were generated, or integrated back."""
    summary: str
    """One line for a user."""


def _fixed(solver: str) -> Callable[..., Iterator[InverseStep]]:
    return lambda velocity, data, sigmas: naive(velocity, data, sigmas, solver=solver)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "exact": Method(exact, True, "solve each step for where it began; Euler and other one-step solvers"),
        "naive": Method(naive, True, "run the solver over the flipped sigmas"),
        "rf_solver": Method(_fixed("midpoint"), False, "RF-Solver: midpoint over the flipped sigmas"),
        "fireflow": Method(_fixed("fireflow"), False, "FireFlow: midpoint at one evaluation a step"),
        "uni_inv": Method(uni_inv, False, "Uni-Inv: one look ahead a step"),
        "fixed_point": Method(fixed_point, False, "plain fixed point, a fixed number a step (AIDI, ReNoise)"),
    }
)


def invert(
    velocity: Velocity,
    data: Tensor,
    sigmas: Tensor,
    method: str = "exact",
    solver: str = "euler",
    *,
    companion: Companion | None = None,
    extra: Mapping[str, Any] | None = None,
    **options: Any,
) -> Tensor:
    """Find the noise that data were generated from. `inversion` returns how it went beside it.

    Only `exact` returns to the noise itself: from data of a reversible solver and their companion by undoing
    it, from data of a one-step solver by solving each of its steps. METHODS says what the others do; they
    have no use for a companion.

    Args:
        velocity: that of the generation, called as velocity(x, sigma): same prompt, negative prompt and
            guidance, or it is another field. In float32: half precision costs more than any method gains.
        data: the last state of the generation, (B, *S).
        sigmas: the generation's table, falling, (steps + 1,). What a reversible solver did on a rising one,
            from a picture to noise, is undone likewise.
        method: a name in METHODS.
        solver: that of the generation, a name in SOLVERS; for `naive`, the one to run upward.
        companion: from `integrate`; `exact` needs it for a reversible solver. Refused with other solvers.
        extra: as given to `integrate`; compared with the companion's.
        options: keyword arguments of the method, or of the reversible solver.

    Returns:
        The state at `sigmas[0]`, (B, *S).

    Raises:
        FlowError: an unknown method, solver or option, a stochastic solver, a companion that is missing or
            belongs to other settings, sigmas that do not fall where nothing is undone, and what the method
            refuses.
    """
    options |= {"companion": companion, "extra": extra}
    return inversion(velocity, data, sigmas, method, solver, **options).noise


def inversion(
    velocity: Velocity,
    data: Tensor,
    sigmas: Tensor,
    method: str = "exact",
    solver: str = "euler",
    **options: Any,
) -> Inversion:
    """`invert`, with the report: evaluations, residuals, what did not converge, what may be another noise."""
    steps = list(inverting(velocity, data, sigmas, method, solver, **options))
    name = "undo" if undoes(method, options.get("companion")) else method
    return Inversion(steps[-1].x, Report(name, solver, tuple(step.report for step in steps)))


def undoes(method: str, companion: Companion | None) -> bool:
    """Whether a generation is undone from its companion."""
    return method == "exact" and companion is not None


def inverting(
    velocity: Velocity,
    data: Tensor,
    sigmas: Tensor,
    method: str = "exact",
    solver: str = "euler",
    *,
    companion: Companion | None = None,
    extra: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[InverseStep]:
    """`invert` as a generator of steps, from data to noise, for progress and for stopping early."""
    entry = lookup(solver)
    if isinstance(velocity, Cached):
        raise FlowError("a cached velocity is no function of x and sigma, and has no inverse: invert without")
    if entry.stochastic:
        raise FlowError(
            f"{solver!r} cannot be inverted: each of its steps adds noise of which the data keep no trace. "
            "Generate with a solver that draws none"
        )
    _, table = prepare(data, sigmas)
    if companion is not None and not entry.reversible:
        raise FlowError(
            f"{solver!r} has no companion; name the reversible solver that the data were generated with"
        )
    if method not in METHODS:
        raise FlowError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}")
    if undoes(method, companion):
        assert companion is not None
        return _undo(velocity, data, sigmas, solver, companion, extra or {}, options)
    if table[0] < table[-1]:
        raise FlowError(
            f"sigmas must be the generation's, falling; got {float(table[0]):g} to {float(table[-1]):g}"
        )
    if entry.reversible and method == "exact":
        raise FlowError(
            f"undoing {solver!r} needs the companion of the generation; without it, use method='naive'"
        )
    _check_options(method, solver, options)
    if METHODS[method].takes_solver:
        options["solver"] = solver
    return METHODS[method].run(velocity, data, sigmas, **options)


def _check_options(method: str, solver: str, options: Mapping[str, Any]) -> None:
    if method == "naive":  # what it takes beside the name of a solver it hands on to that solver
        check_options(f"method {method!r} with solver {solver!r}", lookup(solver).run, options)
    else:
        check_options(f"method {method!r}", METHODS[method].run, options)


def _undo(
    velocity: Velocity,
    data: Tensor,
    sigmas: Tensor,
    solver: str,
    companion: Companion,
    extra: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Iterator[InverseStep]:
    x, table = prepare(data, sigmas)
    companion.check(settings_of(solver, options, x, table, extra))
    undo = lookup(solver).undo
    assert undo is not None
    counted = Counted(velocity)
    steps = undo(counted, x, companion.tensors, sigmas, **options)

    def inverse() -> Iterator[InverseStep]:
        before, levels = 0, table.tolist()
        for step in steps:
            made, before = counted.since(before), counted.calls
            report = StepReport(step.number, levels[step.number], levels[step.number + 1], made)
            if step.mismatch is not None:
                tolerance = ROUNDING * torch.finfo(x.dtype).eps
                report = replace(report, mismatch=tuple(step.mismatch.tolist()), tolerance=tolerance)
            yield InverseStep(step.x, report)

    return inverse()
