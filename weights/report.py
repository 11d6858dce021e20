"""What a source holds and lacks, for people and for programs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .build import build_component, position_difference
from .compare import Misfit, compare, table
from .component import Component
from .errors import FitError, ValuesError
from .file import DTYPES
from .load_into import projection_distance
from .source import FETCH, TINY, TOKENIZERS, Source, resolve
from .values import check_finite
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
    misfits: tuple[Misfit, ...] = ()  # what is missing, left over, misshapen
    notes: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether it would load."""
        return not self.misfits


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
        return not self.missing and all(part.is_complete for part in self.components.values())

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return {**asdict(self), "is_complete": self.is_complete}

    def __str__(self) -> str:
        parts = self.components.values()
        lines = [f"{self.source}: {'complete' if self.is_complete else 'not a whole model'}", ""]
        header = ("part", "variant", "parameters", "dtype", "size", "tensors", "where")
        rows = [header, *(_row(part) for part in parts)]
        lines += _aligned(rows, right=(2, 4, 5))
        lines += _section("how it was decided", [(part.part, part.decided) for part in parts])
        lines += _section("missing", [(name, f"fetch {what}") for name, what in self.missing.items()])
        for part in parts:
            if part.misfits:
                lines += ["", f"{part.part} does not fit", table(part.misfits)]
        others = [(file, f"{len(names)} tensors, {names[0]}, ...") for file, names in self.stray.items()]
        lines += _section("files that hold no part", others)
        lines += _section("notes", [(part.part, note) for part in parts for note in part.notes])
        return "\n".join(lines)


def inspect(source: str | Path, *, values: bool = False) -> Report:
    """Find out what a source holds, and what it lacks for a whole text-to-image model.

    Only headers are read, on the Hub too, and a sample of the stored position table.

    Args:
        source: as in `load_mmdit`.
        values: also read every weight that is on this machine, and report NaN and infinities.

    Raises:
        CheckpointError: there is nothing to report on: no such source, or a file that cannot be read.
    """
    found = resolve(source)
    components = {part: _report(component, values=values) for part, component in found.components.items()}
    return Report(found.name, components, _missing(found), found.stray)


def _missing(found: Source) -> dict[str, str]:
    """What a whole model needs beyond this source, with what to fetch."""
    missing = {part: FETCH[part] for part in NEEDED if part not in found.components}
    folders = [places[0] for part, places in TOKENIZERS.items() if part not in found.tokenizers]
    return missing | {folder: FETCH[folder] for folder in folders}


def _report(component: Component, *, values: bool) -> ComponentReport:
    """Report on one part."""
    sources = component.sources.values()
    dtypes: Counter[str] = Counter()
    for info in sources:
        dtypes[info.dtype] += info.parameters
    try:
        module = build_component(component)
    except FitError as error:
        variant, decided, misfits = "unknown", component.decided, (Misfit("no sizes", str(error)),)
    else:
        variant, decided = describe(component, module)
        misfits = tuple(compare(component, module))
    if component.unit.folder.name == "tiny" and TINY.is_dir():
        variant = "tiny"
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
        notes=tuple(_notes(component, values=values)) if not misfits else (),
    )


def _notes(component: Component, *, values: bool) -> list[str]:
    """What the values of a complete part tell, where its files are on this machine."""
    if not all(component.unit.folder.is_here(file) for file in component.files):
        return ["not downloaded yet: read from the headers alone"]
    notes = []
    if component.part == "mmdit":
        notes.append(_position_note(component))
    distance = projection_distance(component)
    if distance is not None:
        same = "is the identity" if distance == 0 else f"differs from the identity by {distance:.3g}"
        notes.append(f"text_projection {same}; it is not used, since SD3 does not project CLIP-L")
    if any(info.dtype == "F8_E4M3" for info in component.sources.values()):
        notes.append("stored in fp8 without scales: loads as bfloat16 unless another dtype is asked for")
    if values:
        try:
            check_finite(component.tensors(), name=component.where, whole=True)
            notes.append("every weight is finite")
        except ValuesError as error:
            notes.append(str(error))
    return notes


def _position_note(component: Component) -> str:
    """How the stored position table compares with the computed one."""
    difference, base_size = position_difference(component)
    dtype = DTYPES[component.unit.infos[component.recipes["pos_embed"].sources[0]].dtype]
    formula = f"the sin-cos formula with base {base_size}"
    if difference <= torch.finfo(dtype).eps:
        return f"the stored position table is {formula} (to {difference:.2g}, its rounding)"
    return f"the stored position table differs from {formula} by {difference:.3g}; the stored one is used"


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
