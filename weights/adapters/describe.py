"""What a LoRA's file holds, told without the model that it is for."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..build import released_shapes
from ..errors import AdapterError
from ..parts import PARTS
from ..source import TINY, resolve
from ..variants import RELEASED
from .read import read_adapter
from .value import Adapter


@dataclass(frozen=True)
class AdapterReport:
    """What `inspect_adapter` found. `str(report)` is for people, `report.as_dict()` for JSON."""

    source: str
    fits: tuple[str, ...]  # released models, and "tiny"
    dialect: str  # which spelling its keys have
    keys: int
    kinds: Mapping[str, int]  # "LoRA", "LoKr", ... to how many layers
    parts: Mapping[str, int]  # part to how many layers
    ranks: tuple[int, ...]
    scales: tuple[float, ...]  # alpha / rank, each that occurs
    dtypes: Mapping[str, int]  # to how many tensors
    passed_over: Mapping[str, str]  # key to why it changes nothing
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        layers = ", ".join(f"{count} in {PARTS[part]}" for part, count in self.parts.items())
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        rows = [
            ("fits", ", ".join(self.fits)),
            ("names", self.dialect),
            ("layers", f"{layers}: {kinds}"),
            ("rank", ", ".join(map(str, self.ranks)) or "none"),
            ("scale", ", ".join(f"{scale:g}" for scale in self.scales)),
            ("tensors", ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())),
        ]
        lines = [f"{self.source}: a LoRA or its kin, {self.keys} keys", ""]
        lines += [f"  {name:<8}{value}" for name, value in rows]
        reasons = Counter(self.passed_over.values())
        lines += [f"  {count} keys change nothing: {why}" for why, count in reasons.items()]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def inspect_adapter(source: str | Path) -> AdapterReport:
    """Find out what a LoRA changes, and which models it fits.

    Args:
        source: as in `read_adapter`.

    Raises:
        AdapterError: it is none, or fits none of the released models; the message is that of the model whose
            layers it comes nearest to.
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
        nearest = max(errors[:3], key=_told)
        raise AdapterError(f"{nearest} (it fits none of the released models, and not tiny)")
    adapter = next(iter(read.values()))
    updates = adapter.updates
    tensors = [tensor for update in updates for tensor in update.tensors.values()]
    return AdapterReport(
        adapter.source,
        tuple(read),
        adapter.dialect,
        sum(len(update.keys) for update in updates) + len(adapter.passed_over),
        dict(Counter(update.label for update in updates)),
        dict(Counter(update.part for update in updates)),
        tuple(sorted({update.rank for update in updates if update.rank is not None})),
        tuple(sorted({update.scale for update in updates})),
        dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)),
        adapter.passed_over,
        adapter.notes,
    )


def _tiny() -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of the embedded model."""
    found = resolve("tiny", ("mmdit", "clip_l", "clip_g", "t5")).components if TINY.is_dir() else {}
    return {part: component.shapes() for part, component in found.items()}


def _told(error: AdapterError) -> int:
    """How much an error says of a file."""
    return 2 * ("its update is" in str(error)) + ("no place:" in str(error))
