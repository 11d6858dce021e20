"""The LoRAs of a picture, in a form that can be written into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .errors import SettingsError
from .kinds import Number, Several, of_fields


@dataclass(frozen=True)
class Lora:
    """One LoRA: where it lies, and how strong it is."""

    source: str  # an absolute path where it is on this machine
    scale: float = 1.0
    name: str = ""  # what it is called on the pipeline; "" before it is there
    digest: str = ""  # SHA-256 of the file; "" where it was not read yet
    merged: bool = False  # whether it is folded into the weights, which rounds otherwise

    @classmethod
    def of(cls, given: Any) -> "Lora":
        """One of what a user gave: "FILE", "FILE:SCALE", a pair of both, or its fields.

        Raises:
            SettingsError: it is none of these.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            return of_fields(cls, given, "LoRA")
        scale: Any = 1.0
        if isinstance(given, tuple | list) and len(given) == 2:
            given, scale = given
        elif isinstance(given, str):
            given, scale = _split(given)
        if not isinstance(given, str | Path) or not str(given):
            raise SettingsError(
                f"a LoRA is a file, a folder or owner/name, with :SCALE or not, got {given!r}"
            )
        path = Path(given).expanduser()
        source = str(path.absolute()) if path.exists() else str(given)
        return cls(source, Number().check("the scale of a LoRA", scale))

    def is_same(self, other: "Lora") -> bool:
        """Whether two are one file at one scale, as far as is known of both."""
        one_file = (
            self.digest == other.digest if self.digest and other.digest else self.source == other.source
        )
        return one_file and self.scale == other.scale and self.merged == other.merged

    def __str__(self) -> str:
        digest = f", SHA-256 {self.digest[:12]}" if self.digest else ""
        return f"{self.name or Path(self.source).stem} at scale {self.scale:g} ({self.source}{digest})"


@dataclass(frozen=True)
class Loras(Several):
    """Any number of LoRAs."""

    argument: ClassVar[Mapping[str, Any]] = {"action": "append", "metavar": "FILE[:SCALE]"}
    what: ClassVar[str] = "LoRAs"

    def is_one(self, value: Any) -> bool:
        """See `Several`."""
        is_pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int | float)
        return is_pair or isinstance(value, str | Path | Lora)

    def record(self, value: Any) -> Lora:
        """See `Several`."""
        return Lora.of(value)


def agreed(wanted: tuple[Lora, ...] | None, there: tuple[Lora, ...]) -> tuple[Lora, ...]:
    """What settings are drawn with, where they say what they want, or leave it to the pipeline.

    Args:
        wanted: by the settings; None takes what is there.
        there: on the pipeline.

    Raises:
        SettingsError: one is wanted and not there, or there and not wanted.
    """
    if wanted is None:
        return there
    missing = [one for one in wanted if not any(one.is_same(other) for other in there)]
    if missing:
        raise SettingsError(
            f"these settings are of pictures with the LoRA {missing[0]}, which is not on this pipeline: "
            f"pipe.add_lora({missing[0].source!r}, {missing[0].scale:g}), or replace their `loras` by None"
        )
    extra = [one for one in there if not any(other.is_same(one) for other in wanted)]
    if extra:
        raise SettingsError(
            f"these settings are of pictures without the LoRA {extra[0]}: pipe.remove_lora({extra[0].name!r})"
            ", or replace their `loras` by None"
        )
    return there


def _split(text: str) -> tuple[str, float]:
    """A source and its scale, as FILE:SCALE has them; a path may hold a colon itself.

    Raises:
        SettingsError: what follows the colon is neither a scale nor the rest of a path.
    """
    source, colon, scale = text.rpartition(":")
    try:
        return (source, float(scale)) if colon and source else (text, 1.0)
    except ValueError as error:
        if {"/", "\\"} & set(scale) or Path(text).expanduser().exists():
            return text, 1.0
        raise SettingsError(
            f"a LoRA is FILE or FILE:SCALE, and {scale!r} is no number, in {text!r}"
        ) from error
