"""The pictures that a picture was made from, in a form that can be written into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .errors import SettingsError
from .kinds import Several, of_fields


@dataclass(frozen=True)
class Shown:
    """One picture that was given: where it lies, and a hash by which another one is told."""

    source: str = ""  # an absolute path; "" where it was given in memory
    digest: str = ""  # SHA-256 of its pixels as they are read; "" where it was not read yet

    @classmethod
    def of(cls, given: Any) -> "Shown":
        """One of a path, or of its fields.

        Raises:
            SettingsError: it is neither.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            return of_fields(cls, given, "picture")
        if not isinstance(given, str | Path) or not str(given):
            raise SettingsError(f"expected the path of a picture, got {type(given).__name__}")
        return cls(str(Path(given).expanduser().absolute()))

    @property
    def identity(self) -> str:
        """By which two are one: the hash, or the path of one that was not read."""
        return self.digest or self.source

    def __str__(self) -> str:
        digest = f"SHA-256 {self.digest[:12]}" if self.digest else ""
        if not self.source:
            return f"one that was given in memory ({digest})"
        return f"{self.source} ({digest})" if digest else self.source


@dataclass(frozen=True)
class Pictures(Several):
    """One picture for all, or one for each."""

    argument: ClassVar[Mapping[str, Any]] = {"action": "append", "metavar": "FILE"}
    what: ClassVar[str] = "the path of a picture, or several"

    def is_one(self, value: Any) -> bool:
        """See `Several`."""
        return isinstance(value, str | Path | Shown | Mapping)

    def record(self, value: Any) -> Shown:
        """See `Several`."""
        return Shown.of(value)


def nth(shown: tuple[Shown, ...], index: int) -> tuple[Shown, ...]:
    """What image `index` of several was made from."""
    return shown if len(shown) < 2 else (shown[index],)
