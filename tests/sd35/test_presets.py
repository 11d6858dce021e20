"""A model's own numbers stand where nothing else is said, and one line says so."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import weights
from sd35 import SettingsError
from sd35.guidance import PLAIN
from sd35.presets import NUMBERS, Variant, below_one, numbers_of
from sd35.tasks.calibrate import Calibrate
from sd35.tasks.edit import Edit
from sd35.tasks.generate import Generate
from sd35.tasks.invert import Invert

TINY, MEDIUM = Variant("tiny"), Variant("sd3.5-medium")


@pytest.mark.parametrize(
    ("variant", "preset", "expected"),
    [
        ("sd3.5-large", None, (40, 4.5, "dpmpp_2m", 3.0, False)),
        ("sd3.5-large-turbo", "reference", (4, 1.0, "euler", 3.0, False)),
        ("sd3.5-medium", "reference", (50, 5.0, "dpmpp_2m", 3.0, True)),
        ("sd3-medium", "reference", (50, 5.0, "dpmpp_2m", 1.0, False)),
        ("sd3.5-large", "diffusers", (28, 3.5, "euler", 3.0, False)),
        ("sd3.5-large-turbo", "diffusers", (4, 1.0, "euler", 3.0, False)),
        ("unknown", None, (28, 4.5, "euler", 3.0, False)),
    ],
)
def test_numbers_of_a_model(variant, preset, expected) -> None:
    request = Generate.of("a circle", {}, variant=Variant(variant), preset=preset)
    found = request.settings
    skips = found.guidance.skip_layer is not None
    assert (found.steps, found.guidance_scale, found.solver, found.schedule_shift, skips) == expected
    assert found.schedule == found.policy == (preset or "reference")
    assert (variant == "unknown") == (request.notes == ())
    assert variant == "unknown" or request.notes[0].startswith(
        f"{variant} as {preset or 'reference'} runs it"
    )


@pytest.mark.parametrize("preset", NUMBERS)
def test_large_has_numbers_of_its_own_under_a_controlnet(preset) -> None:
    numbers = numbers_of("sd3.5-large", preset, controlled=True)
    assert (numbers["steps"], numbers["guidance_scale"], numbers["solver"]) == (60, 3.5, "euler")
    assert numbers_of("sd3.5-medium", preset, controlled=True) == numbers_of("sd3.5-medium", preset)
    assert NUMBERS[preset].keys() == NUMBERS["reference"].keys()


def test_options_override_and_are_not_said() -> None:
    given = {"steps": 9, "guidance_scale": 1.0}
    request = Generate.of("a circle", given, variant=MEDIUM)
    assert (request.settings.steps, request.settings.guidance.skip_layer) == (9, None)
    assert request.notes == ("sd3.5-medium as reference runs it: dpmpp_2m, shift 3; options override",)
    request = Generate.of("a circle", {"guidance": {"rescale": 0.5}}, variant=MEDIUM)
    assert request.settings.guidance.rescale == 0.5
    assert request.settings.guidance.skip_layer is not None
    assert "skip-layer guidance" in request.notes[0]


def test_saved_settings_have_numbers_of_their_own() -> None:
    saved = Generate.of("a circle", {"steps": 3}).settings
    assert Generate.of(base=saved, variant=Variant("sd3.5-large")).settings == saved
    with pytest.raises(SettingsError, match="numbers of its own"):
        Generate.of(base=saved, preset="diffusers")
    with pytest.raises(SettingsError, match="must be one of reference, diffusers"):
        Generate.of("a circle", preset="comfy")


def test_the_embedded_model_is_guided_at_high_noise_alone() -> None:
    request = Generate.of("a circle", {}, variant=TINY)
    assert request.settings.guidance.interval == (0.7, 1.0)
    assert request.notes == ("the embedded model: guidance where sigma is 0.7 or more; options override",)
    assert Calibrate.of("a circle", variant=TINY).settings.guidance.interval == (0.7, 1.0)
    for given, preset in (({"guidance": {"interval": (0, 1)}}, None), ({}, "diffusers")):
        other = Generate.of("a circle", given, variant=TINY, preset=preset).settings
        assert other.guidance.interval == (0.0, 1.0)
    assert Generate.of("a circle", {"guidance_scale": 1.0}, variant=TINY).settings.guidance == PLAIN
    sizes = weights.inspect("tiny").components["mmdit"]
    assert (sizes.variant, sizes.decided.endswith("as the embedded model")) == ("tiny", True)


def test_what_carries_no_settings_is_of_the_models_own_flow() -> None:
    """Latents of `generate` are inverted and edited under its guidance, but by Euler's method in 28 steps."""
    latents = torch.zeros(1, 16, 4, 4)
    inverting = Invert.of(latents, "a circle", variant=MEDIUM)
    editing = Edit.of(latents, "a square", "a circle", variant=MEDIUM)
    drawn = Generate.of("a circle", variant=MEDIUM).settings
    for settings in (inverting.settings, editing.before, editing.after):
        assert (settings.guidance, settings.guidance_scale) == (drawn.guidance, drawn.guidance_scale)
        assert (settings.solver, settings.steps, settings.schedule_shift) == ("euler", 28, 3.0)
    note = (
        "sd3.5-medium as reference runs it: guidance scale 5, shift 3, skip-layer guidance; options override",
    )
    assert inverting.source.notes == editing.source.notes == note
    given = {"source_guidance_scale": 1.0}  # of the picture that is there, and not of the new one
    editing = Edit.of(latents, "a square", "a circle", given, variant=MEDIUM)
    assert (editing.before.guidance_scale, editing.before.guidance) == (1.0, PLAIN)
    assert (editing.after.guidance_scale, editing.after.guidance) == (drawn.guidance_scale, drawn.guidance)


def test_a_calibration_is_for_the_models_own_numbers() -> None:
    """Euler's solver aside, and skipped layers, which need a table that is known."""
    request = Calibrate.of("a circle", {"steps": 8}, variant=MEDIUM)
    settings = request.settings
    assert (settings.steps, settings.guidance_scale, settings.schedule_shift) == (8, 5.0, 3.0)
    assert (settings.solver, settings.guidance.skip_layer) == ("euler", None)
    assert request.notes == (
        "sd3.5-medium as reference runs it: guidance scale 5, shift 3; options override",
    )
    assert Calibrate.of("a circle", variant=Variant(shift=2.5)).settings.schedule_shift == 2.5


def test_a_scale_below_one_is_told_in_plain_words() -> None:
    assert below_one(1.0) == below_one(4.5) == ""
    assert "the negative prompt alone" in below_one(0.0)
    assert "less of the prompt" in below_one(0.5)
    assert "away from the prompt" in below_one(-1.0)
    assert all("here that is 1" in below_one(scale) for scale in (-1, 0, 0.5))


def test_diffusers_own_defaults_are_those_of_its_first_model() -> None:
    """Read off the installed source, which is not imported."""
    found = find_spec("diffusers")
    if found is None or found.origin is None:
        pytest.skip("diffusers is not installed")
    folder = Path(found.origin).parent / "pipelines" / "stable_diffusion_3"
    tree = ast.parse((folder / "pipeline_stable_diffusion_3.py").read_text())
    call = next(one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and one.name == "__call__")
    names = [argument.arg for argument in call.args.args][-len(call.args.defaults) :]
    defaults = dict(zip(names, map(ast.literal_eval, call.args.defaults), strict=True))
    numbers = NUMBERS["diffusers"]["sd3-medium"]
    assert numbers["steps"] == defaults["num_inference_steps"]
    assert numbers["guidance_scale"] == defaults["guidance_scale"]
