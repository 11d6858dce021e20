"""The command line and Python ask for the same: for every option of the tables, and of every two options
both make one request, or one refusal."""

import argparse
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import pytest

from flow import SkipLayer
from sd35 import Guidance
from sd35.cli import edit, generate, invert
from sd35.cli.options import given_settings, prompt_of
from sd35.fields import table
from sd35.inputs import PictureSettings
from sd35.methods import Editing, Inverting
from sd35.settings import NOT_TAKEN, Settings
from sd35.tasks.edit import Edit
from sd35.tasks.generate import Generate
from sd35.tasks.invert import Invert

VALUES: dict[str, Any] = {
    "negative": "blue",
    "seed": 7,
    "steps": 3,
    "guidance_scale": 2.5,
    "width": 48,
    "height": 16,
    "images_per_prompt": 2,
    "solver": "heun",
    "solver_options": {"damping": 0.7},
    "schedule": "linear",
    "schedule_shift": 1.5,
    "least_ratio": 0.25,
    "cache": "velocity",
    "cache_threshold": 0.1,
    "policy": "diffusers",
    "missing": "drop",
    "loras": "style.safetensors:0.5",
    "batch_size": 2,
    "guidance.rule": "cfg_zero",
    "guidance.apg_parallel": 0.5,
    "guidance.apg_norm": 0.5,
    "guidance.interval": (0.1, 0.9),
    "guidance.zero_steps": 1,
    "guidance.skip_layer": SkipLayer(2.8, 0.01, 0.2, (7, 8, 9)),
    "guidance.skipped": (0, 1),
    "guidance.rescale": 0.5,
    "guidance.threshold": (0.9, 0.5),
    "method": "naive",
    "accuracy": 0.01,
    "method_options": {"max_evaluations": 50},
    "refine_steps": 2,
    "refine_by": "encoder",
    "measure": False,
    "precision": "model",
    "strength": 0.5,
    "source_prompt": "a star",
    "source_guidance_scale": 1.5,
    "average": 2,
    "gamma": 0.25,
    "eta": 0.25,
    "eta_interval": (0.5, 1.0),
}
"""A value of every setting that is not its default."""

NEEDS: dict[str, tuple[str, Any]] = {
    "solver_options": ("solver", "leapfrog"),
    "least_ratio": ("schedule", "tailed"),
    "cache_threshold": ("cache", "velocity"),
    "guidance.apg_parallel": ("guidance.rule", "apg"),
    "guidance.apg_norm": ("guidance.rule", "apg"),
    "guidance.skipped": ("guidance.skip_layer", SkipLayer(2.8, 0.01, 0.2, (7, 8, 9))),
    "refine_by": ("refine_steps", 2),
    "average": ("method", "flow_edit"),
    "gamma": ("method", "rf_inversion"),
    "eta": ("method", "rf_inversion"),
    "eta_interval": ("method", "rf_inversion"),
    "seed": ("method", "flow_edit"),
}
"""What must be said beside a setting for it to have an effect; of the method, in an edit alone."""


def names_of(*requests: type, but: tuple[str, ...] = ()) -> list[str]:
    """The settings of requests that are options; those of guidance with their path."""
    found = []
    for request in requests:
        for name, told in table(request).items():
            if inner := told.kind.argument.get("of"):
                found += [f"{name}.{one}" for one in table(inner)]
            elif told.is_option and name not in but:
                found.append(name)
    return found


PICTURES = (*table(PictureSettings), "width", "height")
"""Of pictures, which need each other: test_pictures.py has them."""
TASKS = {
    "generate": [*names_of(Settings, but=PICTURES), "width", "height"],
    "invert": names_of(Inverting, Settings, but=(*NOT_TAKEN, *PICTURES)),
    "edit": [*names_of(Editing), *names_of(Settings, but=(*NOT_TAKEN, *PICTURES))],
}
CASES = [(task, name) for task, names in TASKS.items() for name in names]


def with_needs(task: str, name: str) -> dict[str, Any]:
    """A setting with its value, and what it needs beside it."""
    given = {name: "flow_edit" if (task, name) == ("edit", "method") else VALUES[name]}
    if name in NEEDS and (NEEDS[name][0] != "method" or task == "edit"):
        given |= dict([NEEDS[name]])
    if (task, name) == ("invert", "solver_options"):
        given["method"] = "naive"
    return given


def spelled(task: str, given: dict[str, Any]) -> list[str]:
    """Settings as arguments of the command line."""
    words: list[str] = []
    for dest, value in given.items():
        action = next(one for one in parser_of(task)._actions if one.dest == dest)
        option = action.option_strings[0]
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option.removeprefix('--')}")
        elif isinstance(value, dict):
            words += [one for name, inner in value.items() for one in (option, f"{name}={inner}")]
        elif isinstance(value, tuple):
            words += [option, *map(str, value)]
        else:
            words += [option, "diffusers" if isinstance(value, SkipLayer) else str(value)]
    return words


@cache
def parser_of(task: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    {"generate": generate, "invert": invert, "edit": edit}[task].add_arguments(parser)
    return parser


def python_of(given: dict[str, Any]) -> dict[str, Any]:
    """Settings as keyword arguments."""
    guidance = {name.removeprefix("guidance."): value for name, value in given.items() if "guidance." in name}
    own = {name: value for name, value in given.items() if "guidance." not in name}
    return own | ({"guidance": Guidance(**guidance)} if guidance else {})


@pytest.fixture(scope="module")
def picture(pipe, tmp_path_factory):
    """A picture without its settings: nothing is known of it."""
    folder = tmp_path_factory.mktemp("picture")
    (path,) = pipe.generate("a red circle", steps=2).save(folder / "a.png", metadata=False)
    return path


def by_command(task: str, given: dict[str, Any], picture) -> Any:
    """The request that the command line makes."""
    known = (
        []
        if "source_prompt" in given or given.get("method") == "rf_inversion"
        else ["--source-prompt", "a circle"]
    )
    words = {
        "generate": ["a red circle"],
        "invert": [str(picture), "a red circle", "-o", "x"],
        "edit": [str(picture), "a blue square", "-o", "x", *known],
    }[task]
    args = parser_of(task).parse_args([*words, *spelled(task, given)])
    if task == "generate":
        return generate.Asked.of(args).request()
    own = given_settings(args, Inverting if task == "invert" else Editing) | given_settings(args, Settings)
    if task == "invert":
        return Invert.of(args.input, prompt_of(args), own)
    return Edit.of(args.input, prompt_of(args) or "", given=own)


def by_python(task: str, given: dict[str, Any], picture) -> Any:
    """The request that a method of the pipeline makes."""
    own = python_of(given)
    if task == "generate":
        return Generate.of("a red circle", own)
    if task == "invert":
        return Invert.of(picture, "a red circle", own)
    known = None if "source_prompt" in own or own.get("method") == "rf_inversion" else "a circle"
    return Edit.of(str(picture), "a blue square", known, own)


def compared(request: Any) -> dict[str, Any]:
    """A request without the tensors of its picture."""
    parts = {name: getattr(request, name) for name in request.__dataclass_fields__}
    if "source" in parts:
        parts["source"] = replace(parts["source"], image=None, latents=None, name="")
    return parts


def test_every_setting_has_a_value_here_that_is_not_its_default() -> None:
    assert {name for names in TASKS.values() for name in names} == set(VALUES)


@pytest.mark.parametrize(("task", "name"), CASES)
def test_an_option_is_the_argument_of_its_name(task, name, picture) -> None:
    given = with_needs(task, name)
    command, python = (route(task, given, picture) for route in (by_command, by_python))
    assert compared(command) == compared(python)
    assert compared(command) != compared(
        by_python(task, {n: v for n, v in given.items() if n != name}, picture)
    )


@pytest.mark.parametrize("task", TASKS)
def test_both_routes_refuse_the_same_pairs(task, picture) -> None:
    """Of every two options: one request from both routes, or one refusal."""
    for pair in combinations(TASKS[task], 2):
        given = {**with_needs(task, pair[0]), **with_needs(task, pair[1])}
        found = []
        for route in (by_command, by_python):
            try:
                found.append(compared(route(task, given, picture)))
            except ValueError as error:
                found.append(type(error))
        assert found[0] == found[1], pair
