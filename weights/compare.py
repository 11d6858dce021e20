"""Whether the tensors of a component are those of a module: one table of everything that is not."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from .component import Component
from .errors import FitError
from .keys import to_theirs
from .packed.blocks import BLOCKS
from .parts import OTHER_LAYOUTS, PARTS, kind_of

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""The dtypes that weights may have without a scale beside them, or in blocks."""

OPTIONAL = {"controlnet": re.compile(r"pos_embed\.proj\..*")}
"""Keys that a file may hold and that nothing reads: a ControlNet uses the base's patches, not its own."""

SHOWN = 24
"""Rows of one kind that a table lists before it counts the rest."""


@dataclass(frozen=True)
class Misfit:
    """One tensor that does not fit."""

    kind: str  # "missing", "left over", "wrong shape" or "wrong dtype"
    name: str  # as the file calls it, or would
    found: str = ""
    expected: str = ""

    @property
    def explanation(self) -> str:
        """What is there, and what should be."""
        parts = (self.found and f"has {self.found}", self.expected and f"expected {self.expected}")
        return ", ".join(part for part in parts if part)


def compare(component: Component, module: nn.Module) -> list[Misfit]:
    """Compare a component with the module it is meant for, by names, shapes and dtypes.

    Args:
        component: the tensors.
        module: built for their shapes; the meta device will do.

    Returns:
        What does not fit; empty where all is well.
    """
    shapes = component.shapes()
    infos = component.unit.infos
    expected = module.state_dict()
    in_file = _names_in_file(component, list(expected))
    misfits = [
        Misfit("missing", in_file[name], expected=str(list(tensor.shape)))
        for name, tensor in expected.items()
        if name not in shapes
    ]
    optional = OPTIONAL.get(component.part, re.compile("$^"))
    extra = [
        source
        for name in shapes
        if name not in expected and not optional.fullmatch(name)
        for source in component.recipes[name].sources
    ]
    misfits += [
        Misfit("left over", name, found=f"{infos[name].dtype} {list(infos[name].shape)}")
        for name in (*extra, *component.left_over)
    ]
    for name, tensor in expected.items():
        if name not in shapes:
            continue
        if shapes[name] != tuple(tensor.shape):
            found, wanted = str(list(shapes[name])), str(list(tensor.shape))
            misfits.append(Misfit("wrong shape", in_file[name], found, wanted))
        sources = [one for one in component.recipes[name].sources if one not in component.coded]
        dtypes = {infos[source].dtype for source in sources}
        if tensor.is_floating_point() and not dtypes <= {*FLOATS, *BLOCKS}:
            misfits.append(
                Misfit("wrong dtype", in_file[name], " ".join(sorted(dtypes)), " or ".join(FLOATS))
            )
    return misfits


def require_fit(component: Component, module: nn.Module) -> None:
    """Refuse a component that does not fit its module.

    Raises:
        FitError: the message holds the whole table.
    """
    misfits = compare(component, module)
    if misfits:
        counts = Counter(misfit.kind for misfit in misfits)
        summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        raise FitError(
            f"{component.where} does not fit the {PARTS[component.part]} ({summary}), "
            f"and nothing was loaded. {_advice(component, misfits)}\n{table(misfits)}"
        )


def table(misfits: Sequence[Misfit]) -> str:
    """One row per tensor; of each kind the first `SHOWN`, then a count."""
    rows = []
    for kind, count in Counter(misfit.kind for misfit in misfits).items():
        same = [misfit for misfit in misfits if misfit.kind == kind]
        rows += [(kind, misfit.name, misfit.explanation) for misfit in same[:SHOWN]]
        rows += [(kind, f"... and {count - SHOWN} more", "")] if count > SHOWN else []
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(
        f"  {kind:<{widths[0]}}  {name:<{widths[1]}}  {what}".rstrip() for kind, name, what in rows
    )


def _advice(component: Component, misfits: Sequence[Misfit]) -> str:
    """What to do about it."""
    return "Fetch the file again, or check that it is of this model."


def _names_in_file(component: Component, names: list[str]) -> dict[str, str]:
    """What the file calls, or should call, each of our tensors; without a trainer's wrappers."""
    if component.layout == "official":
        return {name: component.prefix + name for name in names}
    recipes, unknown = to_theirs(names, OTHER_LAYOUTS[kind_of(component.part, component.recipes)][2])
    return {name: " | ".join(recipe.sources) for name, recipe in recipes.items()} | dict(
        zip(unknown, unknown, strict=True)
    )
