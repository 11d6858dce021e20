"""What a source holds and lacks, for people and for programs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .build import build_component
from .checks import Check, checks_of, misfits_of
from .compare import Misfit, table
from .component import Component
from .fetch import what_to_fetch
from .load_into import projection_distance
from .packed.blocks import BLOCKS
from .recognise import named
from .source import EMBEDDED, TOKENIZERS, Source, resolve
from .variants import describe

NEEDED = ("mmdit", "vae", "clip_l", "clip_g", "t5")
"""The parts of a whole text-to-image model."""


@dataclass(frozen=True)
class ComponentReport:
    """One part of a source."""

    part: str
    variant: str  # "sd3.5-medium", "clip-l", ..., or "unknown"
    decided: str  # by what the part and the variant were told
    files: tuple[str, ...]
    layout: str  # "official" or "diffusers"
    prefix: str  # before the keys in the file
    tensors: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]  # dtype, in the file's spelling, to parameters
    misfits: tuple[Misfit, ...] = ()  # what is missing, left over, of another shape
    checks: tuple[Check, ...] = ()  # of the values, where the part fits and is on this machine
    notes: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether it would load."""
        return not self.misfits and all(check.passed is not False for check in self.checks)


@dataclass(frozen=True)
class Report:
    """What `inspect` found. `str(report)` is for people, `report.as_dict()` for JSON."""

    source: str
    components: Mapping[str, ComponentReport]
    missing: Mapping[str, str]  # part or tokenizer folder to what to fetch for it
    stray: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # file without any part to its keys

    @property
    def is_complete(self) -> bool:
        """Whether a text-to-image model can be loaded from this source alone."""
        whole = not self.missing and not self.is_controlnet
        return whole and all(part.is_complete for part in self.components.values())

    @property
    def is_controlnet(self) -> bool:
        """Whether it holds a ControlNet alone, which no other part is missed beside."""
        return self.components.keys() == {"controlnet"}

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return {**asdict(self), "is_complete": self.is_complete}

    def __str__(self) -> str:
        parts = self.components.values()
        what = "complete" if self.is_complete else "not a whole model"
        lines = [f"{self.source}: {'a ControlNet' if self.is_controlnet else what}", ""]
        header = ("part", "variant", "parameters", "dtype", "size", "tensors", "where")
        rows = [header, *(_row(part) for part in parts)]
        lines += _aligned(rows, right=(2, 4, 5))
        lines += _section("how it was decided", [(part.part, part.decided) for part in parts])
        lines += _section("missing", [(name, f"fetch {what}") for name, what in self.missing.items()])
        for part in parts:
            if part.misfits:
                lines += ["", f"{part.part} does not fit", table(part.misfits)]
        others = [(file, named(names)) for file, names in self.stray.items()]
        lines += _section("files that hold no part", others)
        checked = [(part.part, check.name, _told(check)) for part in parts for check in part.checks]
        lines += _section("checked", checked)
        lines += _section("notes", [(part.part, note) for part in parts for note in part.notes])
        return "\n".join(lines)


def inspect(source: str | Path, *, values: bool = False) -> Report:
    """Find out what a source holds, and what it lacks for a whole text-to-image model.

    On the Hub only headers are read. Of files on this machine as many weights are read as loading looks at,
    so that the report says what loading would refuse.

    Args:
        source: as in `load_mmdit`.
        values: read every weight that is on this machine.

    Raises:
        CheckpointError: there is nothing to report on: no such source, or a file that cannot be read.
    """
    found = resolve(source)
    components = {part: _report(component, values=values) for part, component in found.components.items()}
    return Report(found.name, components, _missing(found), found.stray)


def _missing(found: Source) -> dict[str, str]:
    """What a whole model needs beyond this source, with what to fetch; nothing beyond a ControlNet."""
    if found.components.keys() == {"controlnet"}:
        return {}
    missing = [part for part in NEEDED if part not in found.components]
    missing += [places[0] for part, places in TOKENIZERS.items() if part not in found.tokenizers]
    return {name: what_to_fetch(name, found.components) for name in missing}


def _report(component: Component, *, values: bool) -> ComponentReport:
    """Report on one part."""
    sources = component.sources.values()
    dtypes: Counter[str] = Counter()
    for info in sources:
        dtypes[info.dtype] += info.parameters
    misfits = misfits_of(component)
    variant, decided = "unknown", component.decided
    if not misfits:
        variant, decided = describe(component, build_component(component))
    name = component.unit.folder.name
    if name in EMBEDDED and EMBEDDED[name].is_dir():
        variant = name
    return ComponentReport(
        part=component.part,
        variant=variant,
        decided=decided,
        files=tuple(component.files),
        layout=component.layout,
        prefix=component.prefix,
        tensors=len(sources),
        parameters=sum(dtypes.values()),
        bytes=sum(info.nbytes for info in sources),
        dtypes=dict(dtypes.most_common()),
        misfits=misfits,
        checks=tuple(_checks(component, values=values)) if not misfits else (),
        notes=tuple(_notes(component)),
    )


def _checks(component: Component, *, values: bool) -> Iterator[Check]:
    """What the values of a part tell that fits, where its files are on this machine."""
    if _is_here(component):
        yield from checks_of(component, whole=values)


def _is_here(component: Component) -> bool:
    return all(component.unit.folder.is_here(file) for file in component.files)


def _notes(component: Component) -> Iterator[str]:
    """What else is worth telling of a part."""
    if component.unit.wrappers:
        wrappers = ", ".join(component.unit.wrappers)
        yield f"its keys are wrapped in {wrappers}, as trainers save them, which is taken off"
    if not _is_here(component):
        yield "not downloaded yet: read from the headers alone"
        return
    distance = projection_distance(component)
    if distance is not None:
        same = "is the identity" if distance == 0 else f"differs from the identity by {distance:.3g}"
        yield f"text_projection {same}; it is not used, since SD3 does not project CLIP-L"
    if component.in_few_bits:
        blocks = any(info.dtype in BLOCKS for info in component.sources.values())
        scales = "with scales" if component.coded else "in blocks" if blocks else "without scales"
        yield (
            f"stored in few bits {scales}: each linear layer makes its numbers when it is used, in "
            f"{str(component.dtype).removeprefix('torch.')} unless another dtype is asked for"
        )


def _told(check: Check) -> str:
    """A check's result, marked where it failed."""
    return check.result if check.passed is not False else f"FAILED: {check.result}"


def _row(part: ComponentReport) -> tuple[str, ...]:
    """One part as a row of the table."""
    where = ", ".join(part.files[:2]) + (f" and {len(part.files) - 2} more" if len(part.files) > 2 else "")
    prefix = f" ({part.prefix})" if part.prefix else ""
    return (
        part.part,
        part.variant,
        _scaled(part.parameters, ""),
        " ".join(part.dtypes),
        _scaled(part.bytes, "B"),
        str(part.tensors),
        where + prefix,
    )


def _scaled(count: int, unit: str) -> str:
    """A count in thousands, millions or thousands of millions."""
    for limit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.2f} {letter}{unit}"
    return f"{count} {unit}".rstrip()


def _section(title: str, rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A titled list; nothing where there are no rows."""
    return ["", title, *_aligned(rows)] if rows else []


def _aligned(rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    """Rows as lines with aligned columns."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
