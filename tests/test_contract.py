"""The names that tests from outside call: what the packages and the command line promise to keep."""

from inspect import signature

import pytest

import flow
import sd35
import weights
from sd35.cli import entry

GENERATE = ("prompt", "negative", "seed", "steps", "guidance_scale", "width", "height", "solver", "schedule")
OPTIONS = ("--model", "-m", "--seed", "--steps", "--guidance-scale", "--cfg", "--solver", "--output", "-o")


@pytest.mark.parametrize(
    ("package", "names"),
    [
        (weights, "load_mmdit load_controlnet load_vae load_textenc load_clip load_t5 build_mmdit inspect"),
        (flow, "sigmas euler solve guide guided invert inversion integrate cfm_loss SOLVERS METHODS"),
        (sd35, "load Pipeline Settings Guidance Result State capture patch list_taps read_settings"),
        (sd35.Pipeline, "generate record run steps invert edit velocity encode encode_prompt decode to"),
        (sd35.Result, "images save state"),
    ],
)
def test_names_are_there(package, names) -> None:
    assert [name for name in names.split() if not hasattr(package, name)] == []


def test_the_arguments_of_the_methods() -> None:
    assert [name for name in GENERATE if name not in signature(sd35.Pipeline.generate).parameters] == []
    assert list(signature(sd35.Pipeline.velocity).parameters)[1:4] == ["prompt", "negative", "guidance_scale"]
    assert list(signature(sd35.load).parameters)[:3] == ["source", "device", "dtype"]


@pytest.mark.parametrize("command", ["generate", "invert", "edit"])
def test_the_options_of_the_commands(command, capsys) -> None:
    with pytest.raises(SystemExit):
        entry.main([command, "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert [option for option in OPTIONS if option not in words] == []


def test_none_is_nothing_said() -> None:
    settings = sd35.Settings(prompts="a")
    from sd35.tasks.generate import Generate

    given = dict.fromkeys(("steps", "guidance_scale", "width", "height", "solver", "negative", "guidance"))
    assert Generate.of("a", given).settings == settings
