"""The table of settings: what a value may be, what it decides, and one line for the user, each told once.

A request is a frozen dataclass whose fields are made by `setting`. Checks, options of the command line, the
saved form, "is this the same flow" and the documentation are all read off these fields. Nothing here needs
torch, so that `--help` answers at once.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal, TypeVar

from .errors import SettingsError
from .kinds import Kind

Decides = Literal["flow", "start", "speed", "output", "record"]
"""What a setting decides: the flow that a solver follows; where it starts, and how much of it is run; how
fast it goes; what is written. "record" is what was noted down of a picture, and decides nothing."""

Request = TypeVar("Request")


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

    def spelled(self, name: str) -> str:
        """The option of the setting of this name; "" where there is none."""
        return (self.option or f"--{name.replace('_', '-')}") if self.is_option else ""


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
    return dict(_table(request if isinstance(request, type) else type(request)))


@cache
def _table(kind: type[Any]) -> Mapping[str, Field]:
    own = vars(kind).get("__annotations__", {})
    settings = [one for one in fields(kind) if "setting" in one.metadata]
    settings.sort(key=lambda one: one.name not in own)
    return {one.name: one.metadata["setting"] for one in settings}


def default_of(request: Any, name: str) -> Any:
    """What a setting is where nothing is said; MISSING where something must be."""
    one = request.__dataclass_fields__[name]
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
        object.__setattr__(request, name, checked(told, name, value))


def checked(told: Field, name: str, value: Any) -> Any:
    """The value of one setting, as `Kind.check` gives it.

    Raises:
        SettingsError: it is none of its kind; the error knows the option.
    """
    try:
        return told.kind.check(name, value)
    except SettingsError as error:
        if not error.setting and str(error).startswith(name):
            error.setting, error.option = name, told.spelled(name)
        raise


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
            raise idle(request, name, told.where)


def idle(request: Any, name: str, where: str) -> SettingsError:
    """The error of a setting that has no effect in a request; `where` says in what it would have one."""
    error = fault(request, [name], f" has no effect here, only {where}: leave it out")
    if "of" in table(request)[name].kind.argument:  # the command line has options for what is inside it
        inner = getattr(request, name)
        error.option = fault(inner, changed(inner), "").option
    return error


def fault(request: Any, names: Sequence[str], text: str) -> SettingsError:
    """The error of one or more settings of a request, or of its class: their names, and then the text."""
    told = table(request)
    options = [told[name].spelled(name) or name for name in names]
    return SettingsError(", ".join(names) + text, ", ".join(names), ", ".join(options))


def plain(request: Any) -> dict[str, Any]:
    """Every setting as JSON has it."""
    return {
        name: None if (value := getattr(request, name)) is None else told.kind.plain(value)
        for name, told in table(request).items()
    }


def read(request: type[Request], text: str, format: str, version: int) -> Request:
    """A request from its saved form: `plain` with "format" and "version", as JSON.

    Raises:
        SettingsError: this is something else, of another version, or holds values out of range.
    """
    try:
        described = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"saved settings are damaged: {error}") from error
    if not isinstance(described, dict) or described.pop("format", None) != format:
        raise SettingsError(f"expected saved settings ({format}), got something else")
    found = described.pop("version", None)
    if found != version:
        raise SettingsError(f"these settings are of version {found}, and this release reads {version}")
    unknown = sorted(described.keys() - table(request).keys())
    if unknown or "prompts" not in described:
        raise SettingsError(f"saved settings are damaged: {', '.join(unknown) or 'prompts'}")
    try:
        return request(**described)
    except ValueError as error:  # a field of another type, a prompt that is none
        raise SettingsError(f"saved settings are damaged: {error}") from error


def deciding(request: Any, *decides: Decides) -> dict[str, Any]:
    """The settings that decide this, as JSON has them."""
    told = table(request)
    return {name: value for name, value in plain(request).items() if told[name].decides in decides}
