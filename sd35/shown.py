"""The pictures that a picture was made from, in a form that can be written into it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from .errors import SettingsError
from .fields import Kind

NONE = "none"
"""What stands for no picture at all, where those of a picture would be taken."""


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
            try:
                return cls(**given)
            except TypeError as error:
                raise SettingsError(f"this is no picture: {dict(given)!r}") from error
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
class Pictures(Kind):
    """One picture for all, or one for each."""

    argument: ClassVar[Mapping[str, Any]] = {"action": "append", "metavar": "FILE"}

    def check(self, name: str, value: Any) -> tuple[Shown, ...]:
        """See `Kind`."""
        if isinstance(value, str | Path | Shown | Mapping):
            value = [value]
        if not isinstance(value, tuple | list):
            raise SettingsError(f"{name} must be the path of a picture, or several, got {value!r}")
        return () if list(value) == [NONE] else tuple(Shown.of(one) for one in value)

    def plain(self, value: tuple[Shown, ...]) -> list[dict[str, Any]]:
        """See `Kind`."""
        return [asdict(one) for one in value]


def nth(shown: tuple[Shown, ...], index: int) -> tuple[Shown, ...]:
    """What image `index` of several was made from."""
    return shown if len(shown) < 2 else (shown[index],)
