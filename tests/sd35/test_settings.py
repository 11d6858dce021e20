"""Settings: what is refused, and the way through JSON."""

import json
from math import inf, nan

import numpy as np
import pytest

from sd35 import Guidance, Settings, SettingsError
from textenc import Prompt

TWO = (Prompt("a"), Prompt("b"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 to 10000, got 0"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"images_per_prompt": 0}, "images_per_prompt must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"width": 0}, "width must be a whole number of at least 1"),
        ({"width": 100}, "width must be a multiple of 16, got 100; the nearest is 96"),
        ({"height": 8}, "height must be a multiple of 16, got 8; the nearest is 16"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be a whole number from 0 to 4294967295"),
        ({"seed": 2**32 - 1, "images_per_prompt": 2}, r"image k of 2 has the seed \+ k"),
        ({"guidance_scale": nan}, "guidance_scale must be a finite number, got nan"),
        ({"guidance_scale": inf}, "guidance_scale must be a finite number"),
        ({"guidance_scale": "7"}, "guidance_scale must be a finite number"),
        ({"schedule_shift": 0.0}, "schedule_shift must be positive"),
        ({"solver": "eular"}, "solver must be one of euler, midpoint"),
        ({"schedule": "karras"}, "schedule must be one of reference, diffusers, linear"),
        ({"policy": "long"}, "policy must be one of reference"),
        ({"missing": "ignore"}, "missing must be one of zeros, drop"),
        ({"prompts": ()}, "at least one prompt"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong, message) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**({"prompts": (Prompt("a"),)} | wrong))


def test_the_settings_of_one_image_are_those_it_can_be_drawn_from_alone() -> None:
    batch = Settings(prompts=TWO, images_per_prompt=2, seed=5)
    assert batch.seeds == (5, 6, 7, 8)
    one = batch.of(2)
    assert (one.prompts, one.seed, one.images) == ((Prompt("b"),), 7, 1)
    with pytest.raises(IndexError):
        batch.of(4)


def test_numbers_of_numpy_are_numbers() -> None:
    settings = Settings(
        prompts="a",
        seed=np.int64(7),
        steps=np.int32(3),
        width=np.uint16(64),
        guidance_scale=np.float32(2.5),
        schedule_shift=np.float64(1.5),
        guidance=Guidance(interval=np.array([0.25, 1.0]).tolist(), zero_steps=np.int8(1)),
    )
    assert settings == Settings(
        prompts=["a"],
        seed=7,
        steps=3,
        width=64,
        guidance_scale=2.5,
        schedule_shift=1.5,
        guidance=Guidance(interval=(0.25, 1.0), zero_steps=1),
    )
    assert Settings.from_json(settings.to_json()) == settings  # plain numbers, as JSON has them


def test_json_keeps_everything() -> None:
    settings = Settings(
        prompts=(Prompt("ein Kreis ●\n\x00"), Prompt("a", t5="b")),
        negative=Prompt("c", clip_l=""),
        seed=None,
        width=64,
        guidance_scale=1.25,
        solver="dopri5",
        solver_options={"rtol": 1e-3},
        model="tiny",
        made_with={"torch": "2"},
    )
    text = settings.to_json()
    assert Settings.from_json(text) == settings
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text)["version"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "something else"),
        ({"version": 2}, "version 2"),
        ({"prompts": None}, "damaged|prompt"),
        ({"prompts": []}, "at least one prompt"),
        ({"colour": 1}, "damaged: colour"),
        ({"steps": -3}, "steps must be"),
        ({"steps": "rm"}, "steps must be"),
        ({"solver_options": 3}, "solver_options"),
        ({"made_with": []}, "made_with"),
        ({"model": 3}, "model"),
    ],
)
def test_json_of_other_kinds_is_refused(change, message) -> None:
    described = json.loads(Settings(prompts=TWO).to_json()) | change
    with pytest.raises(ValueError, match=message):
        Settings.from_json(json.dumps(described))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}"])
def test_what_is_no_json_of_settings_is_refused(text) -> None:
    with pytest.raises(SettingsError):
        Settings.from_json(text)


def test_a_saved_prompt_that_is_none_is_damage() -> None:
    saved = (
        Settings(prompts=(Prompt("a"),)).to_json().replace('"prompts": ["a"]', '"prompts": [{"text": null}]')
    )
    with pytest.raises(SettingsError, match="saved settings are damaged"):
        Settings.from_json(saved)
