"""The numbers that each model is drawn with, by whom.

"reference" is the table of settings in Stability's own code (sd3_infer.py of Stability-AI/sd3.5). "diffusers"
is what the example of each model's card on the Hub runs its pipeline with: 28 steps and 3.5 for
stabilityai/stable-diffusion-3.5-large, 40 and 4.5 for -medium, 4 and 0.0 for -large-turbo, 60 and 3.5 for the
ControlNets of large. The card of SD3-medium and its announcement (huggingface.co/blog/sd3) have 28 and 7.0,
the pipeline's own defaults, which are the same for all models. The announcement of SD3.5-large
(huggingface.co/blog/sd3-5) has 40 and 4.5, as Stability's code; the card counts here.

The embedded model is guided where σ is 0.7 or more alone (a limited interval: Kynkäänniemi et al. 2024,
arXiv:2404.07724). Guided everywhere it overshoots: 94 of 100 prompts of one shape come out right, and all
100 with the interval (docs/pictures.md); and guidance at low noise is what cannot be inverted
(docs/inversion.md).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import SettingsError
from .schedules import is_file

WhoseNumbers = Literal["reference", "diffusers"]

_MULTISTEP = {"solver": "dpmpp_2m", "schedule_shift": 3.0}
_SKIPPING = {"skip_layer": "reference"}
_EULER = {"solver": "euler", "schedule_shift": 3.0}
_AT_HIGH_NOISE = {"interval": (0.7, 1.0)}

NUMBERS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "reference": {
        "sd3-medium": {"steps": 50, "guidance_scale": 5.0, **_MULTISTEP, "schedule_shift": 1.0},
        "sd3.5-medium": {"steps": 50, "guidance_scale": 5.0, **_MULTISTEP, "guidance": _SKIPPING},
        "sd3.5-large": {"steps": 40, "guidance_scale": 4.5, **_MULTISTEP},
        "sd3.5-large-turbo": {"steps": 4, "guidance_scale": 1.0, **_EULER},
        "tiny": {"guidance": _AT_HIGH_NOISE},
    },
    "diffusers": {
        "sd3-medium": {"steps": 28, "guidance_scale": 7.0, **_EULER},
        "sd3.5-medium": {"steps": 40, "guidance_scale": 4.5, **_EULER},
        "sd3.5-large": {"steps": 28, "guidance_scale": 3.5, **_EULER},
        "sd3.5-large-turbo": {"steps": 4, "guidance_scale": 1.0, **_EULER},  # 0.0 there, which means none
        "tiny": {},
    },
}
"""Whose, of which model, which settings."""

WITH_CONTROL = {"steps": 60, "guidance_scale": 3.5, "solver": "euler"}
"""What both run SD3.5-large with where a ControlNet steers it."""

RULES: Mapping[str, Mapping[str, Any]] = {
    "reference": {},
    "diffusers": {
        "schedule": "diffusers",
        "policy": "diffusers",
        "start_rule": "diffusers",
        "control_rule": "diffusers",
    },
}
"""How each rounds, reads prompts, begins and steers; "reference" is what is done where nothing is said."""


@dataclass(frozen=True)
class Variant:
    """Which model it is: what decides the numbers that it is drawn with where a user says nothing."""

    name: str = ""
    """As `weights.inspect` names it: a released one, "tiny"; "unknown" or empty for others."""
    shift: float | None = None
    """Of the schedule, as its scheduler_config.json says where that is not what the released models have."""


UNKNOWN = Variant()


def numbers_of(variant: str, preset: str | None, *, controlled: bool = False) -> dict[str, Any]:
    """The settings that a model is drawn with where a user says nothing.

    Args:
        variant: of the model, as `weights.inspect` names it; of no other, only the rules are there.
        preset: whose; None is the reference's.
        controlled: whether a ControlNet steers.

    Raises:
        SettingsError: there is no such preset.
    """
    whose = preset or "reference"
    if whose not in NUMBERS:
        raise SettingsError(f"preset must be one of {', '.join(NUMBERS)}; got {preset!r}")
    numbers = dict(NUMBERS[whose].get(variant, {}))
    if controlled and variant == "sd3.5-large":
        numbers |= WITH_CONTROL
    return {**numbers, **RULES[whose]}


def told(variant: str, preset: str | None, numbers: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """One line on what was taken from a preset; empty where nothing was."""
    whose = preset or "reference"
    taken = {name: value for name, value in numbers.items() if given.get(name) is None}
    own = given.get("guidance")
    if isinstance(own, Mapping):  # some of its fields alone
        taken["guidance"] = {key: one for key, one in numbers.get("guidance", {}).items() if key not in own}
    taken = {name: value for name, value in taken.items() if value != {}}
    if not taken:
        return ""
    words = {
        "steps": lambda value: f"{value} steps",
        "guidance_scale": lambda value: "no guidance" if value == 1 else f"guidance scale {value:g}",
        "guidance": _of_guidance,
        "solver": str,
        "schedule_shift": lambda value: f"shift {value:g}",
    }
    said = [words[name](value) for name, value in taken.items() if name in words]
    said += [f"{name.replace('_', ' ')} {value}" for name, value in taken.items() if name not in words]
    model = f"{variant} as {whose} runs it" if variant in NUMBERS[whose] else f"as {whose} does it"
    if (variant, whose) == ("tiny", "reference"):
        model = "the embedded model"
    return f"{model}: {', '.join(said)}; options override"


def _of_guidance(numbers: Mapping[str, Any]) -> str:
    """What a preset says of how guidance is done, in words."""
    words = ["skip-layer guidance"] if "skip_layer" in numbers else []
    if "interval" in numbers:
        words.append(f"guidance where sigma is {numbers['interval'][0]:g} or more")
    return " and ".join(words)


def usual_numbers(
    given: Mapping[str, Any],
    variant: Variant,
    preset: str | None = None,
    *,
    saved: bool = False,
    but: Collection[str] = (),
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A model's own numbers where nothing else tells any, and the line that says so.

    Args:
        given: what a user said.
        variant: of the model; the shift of its own files goes before that of `preset`.
        preset: whose; None is the reference's.
        saved: whether settings of an earlier picture tell all.
        but: settings, also of guidance, that the task has no use for.

    Raises:
        SettingsError: there is no such preset, or it has no effect beside saved settings.
    """
    if saved:
        if preset is not None:
            raise SettingsError("a saved picture has numbers of its own: preset has no effect beside them")
        return {}, ()
    numbers = numbers_of(variant.name, preset, controlled=bool(given.get("control")))
    of_calibration = is_file(given.get("schedule"))  # which brings its solver, too
    has_table = of_calibration or isinstance(given.get("schedule"), tuple | list)
    if has_table:
        but = (*but, "steps", "schedule_shift", *(("solver",) if of_calibration else ()))
    kept = {name: value for name, value in numbers.get("guidance", {}).items() if name not in but}
    numbers = {name: value for name, value in numbers.items() if name not in (*but, "guidance")}
    numbers |= {"guidance": kept} if kept else {}
    scale = given.get("guidance_scale")
    if (numbers.get("guidance_scale") if scale is None else scale) == 1:
        numbers.pop("guidance", None)
    notes = [line] if (line := told(variant.name, preset, numbers, given)) else []
    if variant.shift is not None and given.get("schedule_shift") is None and not has_table:
        numbers["schedule_shift"] = variant.shift
        said = f"schedule shift {variant.shift:g}, as the model's scheduler_config.json says"
        notes.append(f"{said}; options override")
    return numbers, tuple(notes)


def below_one(guidance_scale: float) -> str:
    """What a guidance scale below 1 is, for a user who may mean something else by it; else empty."""
    if guidance_scale >= 1:
        return ""
    if guidance_scale == 0:
        meaning = "the negative prompt alone is followed"
    else:
        meaning = "away from the prompt" if guidance_scale < 0 else "less of the prompt than without guidance"
    return (
        f"a guidance scale of {guidance_scale:g} means here: {meaning}. Diffusers calls no guidance 0 or "
        "anything up to 1; here that is 1"
    )
