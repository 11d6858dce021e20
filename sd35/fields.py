"""The table of settings: what a value may be, what it decides, and one line for the user, each told once.

A request is a frozen dataclass whose fields are made by `setting`. Checks, options of the command line, the
saved form, "is this the same flow" and the documentation are all read off these fields. Nothing here needs
torch, so that `--help` answers at once.
"""

from abc import ABC, abstractmethod
from argparse import BooleanOptionalAction
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, TypeVar

from .errors import SettingsError

Decides = Literal["flow", "start", "speed", "output", "record"]
"""What a setting decides: the flow that a solver follows; where it starts, and how much of it is run; how
fast it goes; what is written. "record" is what was noted down of a picture, and decides nothing."""

Request = TypeVar("Request")


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
class Field:
    """One setting."""

    kind: Kind
    help: str  # one line, without the default
    decides: Decides
    option: str = ""  # its spelling on the command line, where that is not --its-name
    also: str = ""  # another spelling
    acts: Callable[[Any], bool] | None = None  # whether it has an effect in a request; None: always
    where: str = ""  # where it has one, for the message
    may_be_none: bool = False  # where None is not the default, and is a value all the same
    is_option: bool = True  # whether the command line has it as an option


def setting(
    default: Any = MISSING,
    kind: Kind | None = None,
    help: str = "",
    *,
    decides: Decides,
    factory: Any = MISSING,
    **details: Any,
) -> Any:
    """A field of a request; see `Field` for the details."""
    assert kind is not None
    told = Field(kind, help, decides, **details)
    if factory is not MISSING:
        return field(default_factory=factory, metadata={"setting": told})
    return field(default=default, metadata={"setting": told})


def table(request: Any) -> dict[str, Field]:
    """The settings of a request, or of its class, by name: its own, and then what it inherits."""
    own = vars(request if isinstance(request, type) else type(request)).get("__annotations__", {})
    settings = [one for one in fields(request) if "setting" in one.metadata]
    settings.sort(key=lambda one: one.name not in own)
    return {one.name: one.metadata["setting"] for one in settings}


def default_of(request: Any, name: str) -> Any:
    """What a setting is where nothing is said; MISSING where something must be."""
    one = next(one for one in fields(request) if one.name == name)
    return one.default if one.default_factory is MISSING else one.default_factory()


def check(request: Any) -> None:
    """Bring every setting of a frozen request to its kind; None passes where it is the default or may be.

    Raises:
        SettingsError: a value that is not of its kind.
    """
    for name, told in table(request).items():
        value = getattr(request, name)
        if value is None and (told.may_be_none or default_of(request, name) is None):
            continue
        object.__setattr__(request, name, told.kind.check(name, value))


def build(
    request: type[Request],
    given: Mapping[str, Any],
    base: Request | None = None,
    usual: Mapping[str, Any] | None = None,
) -> Request:
    """A request from what a user gave, over a saved one, or over what is usual; None is nothing said.

    Raises:
        SettingsError: an unknown name, a value that is not of its kind, or a setting that has no effect
            beside the others.
    """
    known = {name: told for name, told in table(request).items() if told.decides != "record"}
    if unknown := sorted(given.keys() - known.keys()):
        raise SettingsError(f"there is no setting {', '.join(unknown)}; there are {', '.join(known)}")
    given = {name: value for name, value in given.items() if value is not None or known[name].may_be_none}
    usual = {**(usual or {}), **given}
    built = request(**usual) if base is None else replace(base, **given)  # pyright: ignore[reportArgumentType]
    refuse_idle(built, given)
    return built


def changed(request: Any) -> list[str]:
    """The settings of a request that are not what they are where nothing is said."""
    return [name for name in table(request) if getattr(request, name) != default_of(request, name)]


def refuse_idle(request: Any, given: Collection[str]) -> None:
    """Refuse settings that have no effect beside the others.

    Raises:
        SettingsError: one of those given has none; the message says where it would.
    """
    for name, told in table(request).items():
        if name in given and told.acts is not None and not told.acts(request):
            raise SettingsError(f"{name} has no effect here, only {told.where}: leave it out")


def plain(request: Any) -> dict[str, Any]:
    """Every setting as JSON has it."""
    return {
        name: None if (value := getattr(request, name)) is None else told.kind.plain(value)
        for name, told in table(request).items()
    }


def deciding(request: Any, *decides: Decides) -> dict[str, Any]:
    """The settings that decide this, as JSON has them."""
    told = table(request)
    return {name: value for name, value in plain(request).items() if told[name].decides in decides}


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
