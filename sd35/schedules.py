"""Tables of noise levels: one of `flow.sigmas` by name, or one that `sd35 calibrate` made for a model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeGuard, get_args

from .errors import SettingsError
from .kinds import Kind, Whole

if TYPE_CHECKING:
    from flow import Calibration

Preset = Literal["reference", "diffusers", "linear", "tailed"]
"""As `flow.schedule.Preset`, which needs torch."""

CACHES = ("none", "velocity", "block")
"""See `sd35.cache`."""

FORMAT = "sd35.Calibration 1"
"""Of the files of `sd35 calibrate`; the number goes up when a reader of the one before would go wrong."""


def is_file(value: Any) -> TypeGuard[str | Path]:
    """Whether a setting is given as a file of `sd35 calibrate`."""
    return isinstance(value, Path) or (isinstance(value, str) and value.endswith(".json"))


@dataclass(frozen=True)
class Schedule(Kind):
    """The name of a preset, the levels themselves from 1 down to 0, or the path of a file that holds them.

    What is kept of a file is its levels, so that a picture made with it needs no file to be made again.
    """

    argument: ClassVar[Mapping[str, Any]] = {"metavar": "NAME"}

    def check(self, name: str, value: Any) -> str | tuple[float, ...]:
        """See `Kind`."""
        if isinstance(value, str) and value in get_args(Preset):
            return value
        if is_file(value):
            return read_calibration(value).sigmas
        if not isinstance(value, tuple | list):
            raise SettingsError(
                f"{name} must be one of {', '.join(get_args(Preset))}, or a .json file of sd35 calibrate; "
                f"got {value!r}"
            )
        return checked_levels(name, value)


@dataclass(frozen=True)
class Cache(Kind):
    """The name of a step cache, the steps that are computed (0,1,4 as a text), or the path of their file."""

    argument: ClassVar[Mapping[str, Any]] = {"metavar": "NAME"}

    def check(self, name: str, value: Any) -> str | tuple[int, ...]:
        """See `Kind`."""
        if isinstance(value, str) and value in CACHES:
            return value
        if is_file(value):
            path, value = value, read_calibration(value).computed
            if value is None:
                raise SettingsError(
                    f"{path} does not say which steps to compute: sd35 calibrate --budget N does"
                )
        if isinstance(value, str) and value.replace(",", "").isdecimal():
            value = [int(one) for one in value.split(",") if one]
        if not isinstance(value, tuple | list):
            raise SettingsError(
                f"{name} must be one of {', '.join(CACHES)}, steps as 0,1,4, or a file of sd35 calibrate "
                f"--budget; got {value!r}"
            )
        steps = tuple(Whole(0).check(name, one) for one in value)
        if not steps or steps[0] != 0 or list(steps) != sorted(set(steps)):
            raise SettingsError(f"{name} must be rising numbers of steps, from 0 on; got {value!r}")
        return steps


def of_another_table(cache: Any, schedule: Any) -> str:
    """Why the steps of a file given as the cache do not fit a schedule; empty where they do."""
    if not is_file(cache) or schedule == read_calibration(cache).sigmas:
        return ""
    return f": the steps of {cache} belong to the table in it: give the file as the schedule, too"


def of_file(given: Mapping[str, Any], base: Any = None) -> dict[str, Any]:
    """The solver that a file given as the schedule was made for, where no other is given; else nothing.

    Options that settings of an earlier picture, `base`, have for another solver do not go with it.

    Raises:
        OSError: there is no such file.
        SettingsError: it is something else.
    """
    if not is_file(given.get("schedule")):
        return {}
    made = read_calibration(given["schedule"])
    if given.get("solver") not in (None, made.solver):
        return {}
    is_another = base is not None and base.solver != made.solver and "solver_options" not in given
    return {"solver": made.solver} | ({"solver_options": {}} if is_another else {})


def made_for_another(given: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where a file given as the schedule was made for another solver than the one that is given."""
    if not is_file(given.get("schedule")):
        return ()
    made = read_calibration(given["schedule"])
    if given.get("solver") in (None, made.solver):
        return ()
    return (f"{given['schedule']} was made for the solver {made.solver}, and {given['solver']} is used",)


def checked_levels(name: str, value: Sequence[Any]) -> tuple[float, ...]:
    """Levels that fall strictly from 1 to 0.

    Raises:
        SettingsError: they do not, or are no numbers.
    """
    is_table = len(value) > 1 and all(isinstance(one, float | int) for one in value)
    if not is_table or (value[0], value[-1]) != (1, 0) or not all(a > b for a, b in pairwise(value)):
        raise SettingsError(f"{name}: levels must fall strictly from 1 to 0, got {str(value)[:80]}")
    return tuple(float(one) for one in value)


def calibration_text(calibration: "Calibration") -> str:
    """A calibrated table and how it was made, as the JSON that `read_calibration` reads."""
    return json.dumps({"format": FORMAT, **asdict(calibration)}, indent=1) + "\n"


def read_calibration(path: str | Path) -> "Calibration":
    """Read what `sd35 calibrate` wrote.

    Raises:
        OSError: there is no such file.
        SettingsError: it is something else, of another version, or damaged.
    """
    from flow import Calibration

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}: sd35 calibrate makes one")
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError(f"{path} is no table of noise levels: {error}") from error
    if not isinstance(held, dict) or held.pop("format", None) != FORMAT:
        raise SettingsError(f"{path} is no table of noise levels ({FORMAT}): sd35 calibrate makes one")
    held = {"computed": None, "solver": "euler"} | held
    names = {one.name for one in fields(Calibration)}
    if held.keys() != names or not isinstance(held["sigmas"], list):
        raise SettingsError(f"{path} is damaged: expected {', '.join(sorted(names))}")
    if held["solver"] not in solvers():
        raise SettingsError(f"{path} is damaged: there is no solver {held['solver']!r}")
    held["sigmas"] = checked_levels(str(path), held["sigmas"])
    return Calibration(**held)


def solvers() -> tuple[str, ...]:
    """The names of the solvers; imported when they are needed, as torch takes seconds."""
    import flow

    return tuple(flow.SOLVERS)
