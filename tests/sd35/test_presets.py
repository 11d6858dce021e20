"""A model's own numbers stand where nothing else is said, and one line says so."""

import pytest

from sd35 import SettingsError
from sd35.presets import NUMBERS, below_one, numbers_of
from sd35.tasks.generate import Generate


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
    request = Generate.of("a circle", {}, variant=variant, preset=preset)
    found = request.settings
    skips = found.guidance.skip_layer is not None
    assert (found.steps, found.guidance_scale, found.solver, found.schedule_shift, skips) == expected
    assert found.schedule == found.policy == (preset or "reference")
    assert (variant == "unknown") == (request.notes == ())
    assert variant == "unknown" or request.notes[0].startswith(
        f"{variant} as {preset or 'reference'} runs it"
    )


def test_options_override_and_are_not_said() -> None:
    given = {"steps": 9, "guidance_scale": 1.0}
    request = Generate.of("a circle", given, variant="sd3.5-medium")
    assert (request.settings.steps, request.settings.guidance.skip_layer) == (9, None)
    assert request.notes == ("sd3.5-medium as reference runs it: dpmpp_2m, shift 3; options override",)
    request = Generate.of("a circle", {"guidance": {"rescale": 0.5}}, variant="sd3.5-medium")
    assert request.settings.guidance.rescale == 0.5
    assert request.settings.guidance.skip_layer is not None


def test_saved_settings_have_numbers_of_their_own() -> None:
    saved = Generate.of("a circle", {"steps": 3}).settings
    assert Generate.of(base=saved, variant="sd3.5-large").settings == saved
    with pytest.raises(SettingsError, match="numbers of its own"):
        Generate.of(base=saved, preset="diffusers")
    with pytest.raises(SettingsError, match="must be one of reference, diffusers"):
        Generate.of("a circle", preset="comfy")


def test_a_control_net_has_the_reference_run_otherwise() -> None:
    assert numbers_of("sd3.5-large", None, controlled=True)["steps"] == 60
    assert numbers_of("sd3.5-large", "diffusers", controlled=True)["steps"] == 28
    assert all(numbers.keys() == NUMBERS["reference"].keys() for numbers in NUMBERS.values())


def test_a_scale_below_one_is_told_in_plain_words() -> None:
    assert below_one(1.0) == below_one(4.5) == ""
    assert "the negative prompt alone" in below_one(0.0)
    assert "less of the prompt" in below_one(0.5)
    assert "away from the prompt" in below_one(-1.0)
    assert all("here that is 1" in below_one(scale) for scale in (-1, 0, 0.5))
