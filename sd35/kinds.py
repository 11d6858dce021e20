"""Kinds of values: what each setting may be, and how the command line reads it.

Nothing here needs torch, so that `--help` answers at once.
"""

from abc import ABC, abstractmethod
from argparse import BooleanOptionalAction
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar, get_args

from .errors import SettingsError

NONE = "none"
"""What stands for none at all, where those of a saved picture would be taken."""

Record = TypeVar("Record")


class Kind(ABC):
    """What the value of a setting may be."""

    argument: ClassVar[Mapping[str, Any]] = {}
    """How argparse reads it; `option` adds what depends on the values."""

    def option(self) -> dict[str, Any]:
        """The keyword arguments of `add_argument`."""
        return dict(self.argument)

    @abstractmethod
    def check(self, name: str, value: Any) -> Any:
        """The value as it is kept: a plain Python number for numpy's, a tuple for a list.

        Raises:
            SettingsError: it is none of this kind.
        """

    def plain(self, value: Any) -> Any:
        """The value as JSON has it; `check` takes it back."""
        return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number, numpy's too."""

    argument: ClassVar[Mapping[str, Any]] = {"type": int, "metavar": "N"}

    low: int = 1
    high: int | None = None
    multiple: int = 1

    def check(self, name: str, value: Any) -> int:
        """See `Kind`."""
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or not self.low <= int(value) <= (inf if self.high is None else self.high):
            allowed = f"of at least {self.low}" if self.high is None else f"from {self.low} to {self.high}"
            raise SettingsError(f"{name} must be a whole number {allowed}, got {value!r}")
        value = int(value)
        if value % self.multiple:
            near = max(round(value / self.multiple), 1) * self.multiple
            raise SettingsError(
                f"{name} must be a multiple of {self.multiple}, got {value}; the nearest is {near}"
            )
        return value


@dataclass(frozen=True)
class Number(Kind):
    """A finite number, numpy's too, of a range whose ends belong to it unless `open` says otherwise."""

    argument: ClassVar[Mapping[str, Any]] = {"type": float, "metavar": "X"}

    low: float = -inf
    high: float = inf
    open: bool = False  # whether the lower end is left out

    def check(self, name: str, value: Any) -> float:
        """See `Kind`."""
        if not isinstance(value, Real) or isinstance(value, bool) or not isfinite(value):
            raise SettingsError(f"{name} must be a finite number, got {value!r}")
        value = value if type(value) is int else float(value)
        if not self.low <= value <= self.high or (self.open and value == self.low):
            raise SettingsError(f"{name} must be {self._range()}, got {value:g}")
        return value

    def _range(self) -> str:
        if self.low == 0 and self.high == inf:
            return "positive" if self.open else "at least 0"
        if self.high == inf:
            return f"at least {self.low:g}"
        between = f"{self.low:g} and at most {self.high:g}"
        return f"above {between}" if self.open else f"in [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Numbers(Kind):
    """A fixed count of finite numbers; or of two, rising within [0, 1], where they are noise levels."""

    names: tuple[str, ...]
    levels: bool = False

    def check(self, name: str, value: Any) -> tuple[float, ...]:
        """See `Kind`."""
        count = len(self.names)
        if not isinstance(value, tuple | list) or len(value) != count:
            raise SettingsError(f"{name} must be {count} numbers, got {value!r}")
        try:
            values = tuple(Number().check(name, one) for one in value)
        except SettingsError as error:
            raise SettingsError(f"{name} must be {count} numbers, got {value!r}") from error
        if self.levels and not 0 <= values[0] < values[1] <= 1:
            raise SettingsError(f"{name} must be two rising noise levels in [0, 1], got {values}")
        return values

    def option(self) -> dict[str, Any]:
        """See `Kind`."""
        return {"type": float, "nargs": len(self.names), "metavar": self.names}


@dataclass(frozen=True)
class Name(Kind):
    """One of some names."""

    argument: ClassVar[Mapping[str, Any]] = {"metavar": "NAME"}

    names: Callable[[], Collection[str]]

    def check(self, name: str, value: Any) -> str:
        """See `Kind`."""
        names = tuple(self.names())
        if not isinstance(value, str) or value not in names:
            raise SettingsError(f"{name} must be one of {', '.join(names)}; got {value!r}")
        return value

    @classmethod
    def of(cls, literal: Any) -> "Name":
        """One of the names of a `Literal`."""
        return cls(lambda: get_args(literal))


@dataclass(frozen=True)
class Blocks(Kind):
    """Numbers of blocks."""

    argument: ClassVar[Mapping[str, Any]] = {"type": int, "nargs": "+", "metavar": "BLOCK"}

    def check(self, name: str, value: Any) -> tuple[int, ...]:
        """See `Kind`."""
        if not isinstance(value, tuple | list) or not value:
            raise SettingsError(f"{name} must be numbers of blocks, got {value!r}")
        return tuple(Whole(0).check(name, one) for one in value)


@dataclass(frozen=True)
class Switch(Kind):
    """Yes or no."""

    argument: ClassVar[Mapping[str, Any]] = {"action": BooleanOptionalAction}

    def check(self, name: str, value: Any) -> bool:
        """See `Kind`."""
        if not isinstance(value, bool):
            raise SettingsError(f"{name} must be true or false, got {value!r}")
        return value


@dataclass(frozen=True)
class Text(Kind):
    """Any text."""

    argument: ClassVar[Mapping[str, Any]] = {"metavar": "TEXT"}

    def check(self, name: str, value: Any) -> str:
        """See `Kind`."""
        if not isinstance(value, str):
            raise SettingsError(f"{name} must be a str, got {value!r}")
        return value


@dataclass(frozen=True)
class Options(Kind):
    """Keyword arguments of something that has its own: JSON values by name."""

    argument: ClassVar[Mapping[str, Any]] = {"action": "append", "metavar": "NAME=VALUE"}

    def check(self, name: str, value: Any) -> dict[str, Any]:
        """See `Kind`."""
        if not isinstance(value, Mapping):
            raise SettingsError(f"{name} must be a Mapping, got {value!r}")
        return dict(value)


class Several(Kind):
    """Any number of records, in a list or one by itself; NONE by itself is no record at all."""

    what: ClassVar[str]
    """What they are, for the message."""

    @abstractmethod
    def is_one(self, value: Any) -> bool:
        """Whether this is one record, and not a list of them."""

    @abstractmethod
    def record(self, value: Any) -> Any:
        """One record of what a user gave.

        Raises:
            SettingsError: it is none.
        """

    def check(self, name: str, value: Any) -> tuple[Any, ...]:
        """See `Kind`."""
        if self.is_one(value):
            value = [value]
        if not isinstance(value, tuple | list):
            raise SettingsError(f"{name} must be {self.what}, got {value!r}")
        return () if list(value) == [NONE] else tuple(self.record(one) for one in value)

    def plain(self, value: Any) -> list[dict[str, Any]]:
        """See `Kind`: the fields of each."""
        return [asdict(one) for one in value]


def of_fields(kind: Callable[..., Record], fields: Mapping[str, Any], what: str) -> Record:
    """A record of its fields, as `Several.plain` wrote them; `what` it is, for the message.

    Raises:
        SettingsError: those are not its fields.
    """
    try:
        return kind(**fields)
    except TypeError as error:
        raise SettingsError(f"this is no {what}: {dict(fields)!r}") from error
