"""What a LoRA's file holds, told without the model that it is for."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..build import released_shapes
from ..errors import AdapterError
from ..file import DTYPES, MappedFile
from ..parts import PARTS
from ..source import TINY, resolve
from ..variants import RELEASED
from .fit import kind_of
from .names import SUFFIXES, read_key, suffix_of
from .read import dialect_of, open_adapter, read_adapter
from .value import Adapter, Update, rank_of

MODELS = (*RELEASED["mmdit"], "tiny")
"""The models that a LoRA is held against."""


@dataclass(frozen=True)
class AdapterReport:
    """What `inspect_adapter` found. `str(report)` is for people, `report.as_dict()` for JSON."""

    source: str
    fits: tuple[str, ...]  # of MODELS
    refused: str  # where it fits none: why not the one that it comes nearest to, or what it is
    dialect: str  # which spelling its keys have
    keys: int
    kinds: Mapping[str, int]  # "LoRA", "LoKr", ... to how many layers
    parts: Mapping[str, int]  # part, or "a part that is not known", to how many layers
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]  # each that occurs; none where the file stores none that counts
    scales: tuple[float, ...]  # alpha / rank, each that occurs
    dtypes: Mapping[str, int]  # to how many tensors
    passed_over: Mapping[str, str]  # key to why it changes nothing
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        layers = ", ".join(f"{count} in {PARTS.get(part, part)}" for part, count in self.parts.items())
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        rows = [
            ("fits", ", ".join(self.fits) or f"none of {', '.join(MODELS)}"),
            ("since", self.refused),
            ("names", self.dialect),
            ("layers", f"{layers}: {kinds}"),
            ("rank", ", ".join(map(str, self.ranks)) or "none"),
            ("alpha", _numbers(self.alphas) or "none"),
            ("scale", _numbers(self.scales)),
            ("tensors", ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())),
        ]
        lines = [f"{self.source}: a LoRA or one of its relatives, {self.keys} keys", ""]
        lines += [f"  {name:<8}{value}" for name, value in rows if value]
        reasons = Counter(self.passed_over.values())
        lines += [f"  {count} keys change nothing: {why}" for why, count in reasons.items()]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def inspect_adapter(source: str | Path) -> AdapterReport:
    """Find out what a LoRA changes, and which models it fits; of one that fits none, what can be told.

    Args:
        source: as in `read_adapter`.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    read: dict[str, Adapter] = {}
    errors: list[AdapterError] = []
    for variant, shapes in [*((name, None) for name in RELEASED["mmdit"]), ("tiny", _tiny())]:
        try:
            read[variant] = read_adapter(source, shapes or released_shapes(variant))
        except AdapterError as error:
            errors.append(error)
    if not read:
        # A wrong shape says more than a name that is not there, which says more than no name at all.
        return _unfitting(source, str(max(errors[:3], key=_told)))
    adapter = next(iter(read.values()))
    updates = adapter.updates
    tensors = [tensor for update in updates for tensor in update.tensors.values()]
    return AdapterReport(
        adapter.source,
        tuple(read),
        "",
        adapter.dialect,
        sum(len(update.keys) for update in updates) + len(adapter.passed_over),
        dict(Counter(update.label for update in updates)),
        dict(Counter(update.part for update in updates)),
        tuple(sorted({update.rank for update in updates if update.rank is not None})),
        tuple(sorted({update.alpha for update in updates if update.alpha is not None})),
        tuple(sorted({update.scale for update in updates})),
        dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)),
        adapter.passed_over,
        adapter.notes,
    )


def _unfitting(source: str | Path, refused: str) -> AdapterReport:
    """What keys and shapes tell of a file that fits no model."""
    name, path, _ = open_adapter(source)
    opened = MappedFile(path)
    infos = opened.header.tensors
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    for key in infos:
        suffix = suffix_of(key)
        modules[key.removesuffix(suffix)][SUFFIXES.get(suffix, "")] = key
    known = {key: read for key in infos if (read := read_key(key, {})) is not None}
    layers = [_layer(roles, opened) for roles in modules.values()]
    parts = [
        known[key].part if (key := next(iter(roles.values()))) in known else "a part that is not known"
        for roles in modules.values()
    ]
    return AdapterReport(
        name,
        (),
        refused.removeprefix(f"{name}: ").replace(f"{name} ", "it ", 1),
        dialect_of(known.values()) or "none that is known here",
        len(infos),
        dict(Counter(layer.label for layer in layers)),
        dict(Counter(parts)),
        tuple(sorted({layer.rank for layer in layers if layer.rank is not None})),
        tuple(sorted({layer.alpha for layer in layers if layer.alpha is not None})),
        (),
        dict(Counter(str(DTYPES[info.dtype]).removeprefix("torch.") for info in infos.values())),
        {},
        (),
    )


def _layer(roles: Mapping[str, str], opened: MappedFile) -> Update:
    """One layer's update by the shapes of its tensors, whatever model it is for."""
    kind = kind_of(list(roles)) or "unknown"
    shapes = {role: opened.header.tensors[key].shape for role, key in roles.items()}
    ranks = {role: torch.empty((*shape[:1], 0), device="meta") for role, shape in shapes.items() if shape}
    try:
        rank = rank_of(kind, ranks)
    except KeyError:  # the tensor that has it is missing
        rank = None
    alpha = float(opened[roles["alpha"]]) if shapes.get("alpha") in ((), (1,)) else None
    normed = "magnitude" in roles or "dora_scale" in roles
    return Update("", "", kind, {}, (), rows=(0, 0), rank=rank, alpha=alpha, axis=0 if normed else None)


def _numbers(values: tuple[float, ...]) -> str:
    """Numbers in a row."""
    return ", ".join(f"{value:g}" for value in values)


def _tiny() -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of the embedded model."""
    found = resolve("tiny", ("mmdit", "clip_l", "clip_g", "t5")).components if TINY.is_dir() else {}
    return {part: component.shapes() for part, component in found.items()}


def _told(error: AdapterError) -> int:
    """How much an error says of a file."""
    return 2 * ("its update is" in str(error)) + ("no place:" in str(error))
