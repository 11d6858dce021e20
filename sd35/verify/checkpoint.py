"""Checks of a user's own weights: are they whole, do they fit, are they numbers."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from weights import CheckpointError, resolve
from weights.build import build_component, position_difference
from weights.compare import compare
from weights.component import Component
from weights.file import DTYPES
from weights.values import check_finite

Look = Callable[[Component], tuple[bool | None, str]]
"""A check of one part: the verdict, and what was found, in words."""


@dataclass(frozen=True)
class Finding:
    """One check of one part of a checkpoint."""

    part: str
    check: str
    result: str  # what was found, in words
    passed: bool | None  # None where it is neither right nor wrong
    seconds: float


def check_checkpoint(source: str | Path) -> Iterator[Finding]:
    """Check every part of a source: keys, shapes, values, and the position table of the transformer.

    Every weight is read, and what is on the Hub is downloaded.

    Args:
        source: as for `sd35.load`.

    Returns:
        An iterator of findings, each check being made when it is asked for.

    Raises:
        CheckpointError: there is no such source, it holds no model, or a file cannot be read.
    """
    return _findings(resolve(source).components)


def _findings(components: Mapping[str, Component]) -> Iterator[Finding]:
    for part, component in components.items():
        checks: dict[str, Look] = {"keys and shapes": _fit, "finite values": _values}
        if part == "mmdit":
            checks["position table"] = _positions
        for name, check in checks.items():
            begin = time.perf_counter()
            passed, result = _attempt(check, component)
            yield Finding(part, name, result, passed, time.perf_counter() - begin)
            if name == "keys and shapes" and not passed:
                break  # what does not fit is not compared further


def _attempt(check: Look, component: Component) -> tuple[bool | None, str]:
    """A check's verdict; where the checkpoint cannot even be looked at, what was in the way."""
    try:
        return check(component)
    except CheckpointError as error:
        return False, str(error)


def _fit(component: Component) -> tuple[bool, str]:
    """Whether names and shapes are those of the module that they make."""
    misfits = compare(component, build_component(component))
    if misfits:
        first = "; ".join(f"{one.kind}: {one.name}" for one in misfits[:3])
        return False, f"{len(misfits)} do not fit: {first}{' ...' if len(misfits) > 3 else ''}"
    return True, f"all {len(component.recipes)} tensors are there and fit"


def _values(component: Component) -> tuple[bool, str]:
    """Whether every weight is a finite number."""
    check_finite(component.tensors(), name=component.where, whole=True)
    count = sum(info.parameters for info in component.sources.values())
    return True, f"all {count:,} weights are finite"


def _positions(component: Component) -> tuple[bool | None, str]:
    """Whether the stored table is the sin-cos table, to the rounding of its dtype.

    One that is not may be meant so, as the stored table is what the model was trained with and what is used;
    so a difference is told and fails nothing.
    """
    difference, base_size = position_difference(component)
    dtype = DTYPES[component.unit.infos[component.recipes["pos_embed"].sources[0]].dtype]
    limit = torch.finfo(dtype).eps
    of = f"the computed one (base {base_size})"
    if difference <= limit:
        return True, f"is {of}, to {difference:.1e}; its dtype rounds to {limit:.1e}"
    return None, f"differs from {of} by {difference:.1e}; the stored one is used"
