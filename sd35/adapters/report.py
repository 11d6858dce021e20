"""What a LoRA changes, told when it is added."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LoraRow:
    """One module that a LoRA changes, or the rows of its q, k or v."""

    part: str  # mmdit, clip_l, clip_g or t5
    path: str
    rows: tuple[int, int]  # of the module's output
    kind: str  # "LoRA", "LoHa", "LoKr", "full", "bias", "DoRA", "DoRA of LoKr", ...
    rank: int | None
    alpha: float | None
    norm: float  # Frobenius, of what is added at the scale asked for


@dataclass(frozen=True)
class LoraReport:
    """What `add_lora` did. `str(report)` is for people."""

    name: str
    source: str
    digest: str  # SHA-256 of the file
    dialect: str  # which spelling its keys have
    scale: float
    merged: bool
    keys: int  # that were used
    rows: tuple[LoraRow, ...]
    passed_over: Mapping[str, str]  # key to why it changes nothing here
    notes: tuple[str, ...] = ()

    @property
    def has_effect(self) -> bool:
        """Whether anything at all is added."""
        return any(row.norm > 0 for row in self.rows)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(row.kind for row in self.rows).items())
        parts = Counter(row.part for row in self.rows)
        ranks = sorted({row.rank for row in self.rows if row.rank is not None})
        lines = [
            f"LoRA {self.name} at scale {self.scale:g}: {self.keys} keys of {self.source} ({self.dialect})",
            f"  changes {', '.join(f'{count} in {part}' for part, count in parts.items())}: {kinds}"
            + (f", rank {_span(ranks)}" if ranks else ""),
        ]
        if not self.has_effect:
            lines.append("  it is without effect: every update is zero")
        reasons = Counter(self.passed_over.values())
        lines += [f"  {count} keys change nothing: {why}" for why, count in reasons.items()]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def _span(ranks: list[int]) -> str:
    """One rank, or the smallest and the largest."""
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
