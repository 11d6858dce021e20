"""What is checked of a part: that it fits, that its weights are numbers, and what its position table is."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .build import build_component, position_difference
from .compare import Misfit, compare
from .component import Component
from .errors import FitError, ValuesError
from .file import DTYPES
from .values import check_finite


@dataclass(frozen=True)
class Check:
    """One check of one part."""

    name: str  # "keys and shapes", "finite values" or "position table"
    result: str  # what was found, in words
    passed: bool | None  # None where it is neither right nor wrong


def misfits_of(component: Component) -> tuple[Misfit, ...]:
    """What keeps a part from being loaded, by its names, shapes and config; empty where nothing does."""
    try:
        return tuple(compare(component, build_component(component)))
    except FitError as error:
        return (Misfit("cannot be built", str(error)),)


def checks_of(component: Component, *, whole: bool) -> Iterator[Check]:
    """Check a part, one check after the other; what does not fit is not checked further.

    Its files are downloaded where they are remote.

    Args:
        component: the part.
        whole: read every weight; otherwise as much as loading reads, see `values.check_finite`.

    Raises:
        CheckpointError: a file cannot be read.
    """
    misfits = misfits_of(component)
    if misfits:
        first = "; ".join(f"{one.kind}: {one.name}" for one in misfits[:3])
        more = " ..." if len(misfits) > 3 else ""
        yield Check("keys and shapes", f"{len(misfits)} do not fit: {first}{more}", False)
        return
    yield Check("keys and shapes", f"all {len(component.recipes)} tensors are there and fit", True)
    yield _finite(component, whole=whole)
    if component.part == "mmdit":
        yield _positions(component)


def _finite(component: Component, *, whole: bool) -> Check:
    """Whether every weight that was read is a finite number."""
    try:
        check_finite(component.tensors(), name=component.where, whole=whole)
    except ValuesError as error:
        return Check("finite values", str(error), False)
    count = sum(info.parameters for info in component.sources.values())
    read = f"all {count:,} weights are finite" if whole else "no NaN or infinity among the weights looked at"
    return Check("finite values", read, True)


def _positions(component: Component) -> Check:
    """Whether the stored table is the sin-cos table, to the rounding of its dtype.

    One that is not may be meant so, as the stored table is what the model was trained with and what is used;
    so a difference is told and fails nothing.
    """
    difference, base_size = position_difference(component)
    stored = component.unit.infos[component.recipes["pos_embed"].sources[0]].dtype
    dtype = DTYPES.get(stored, torch.float32)  # what blocks stand for
    formula = f"the sin-cos formula with base {base_size}"
    if difference <= torch.finfo(dtype).eps:
        return Check("position table", f"is {formula} (to {difference:.2g}, its rounding)", True)
    told = f"differs from {formula} by {difference:.3g}; the stored one is used"
    return Check("position table", told, None)
