"""Tables of noise levels as settings: presets with a bound, and tables of `sd35 calibrate`."""

import json
from itertools import pairwise

import pytest
import torch

import flow
from sd35 import Settings, read_settings
from sd35.errors import SettingsError
from sd35.presets import Variant
from sd35.schedules import calibration_text, read_calibration
from sd35.settings import settings_of
from sd35.tasks.generate import Generate

LEVELS = (1.0, 0.75, 0.25, 0.0)


def test_the_bound_reaches_the_table():
    settings = Settings(prompts="a", schedule="tailed", least_ratio=0.25)
    assert torch.equal(settings.sigmas, flow.sigmas(28, 3.0, "tailed", least_ratio=0.25))
    assert not torch.equal(settings.sigmas, Settings(prompts="a", schedule="tailed").sigmas)


def test_the_bound_needs_the_tailed_schedule():
    with pytest.raises(SettingsError, match="only with the schedule tailed"):
        settings_of({"prompts": "a", "least_ratio": 0.3})


def test_a_table_brings_its_number_of_steps_and_is_kept_whole():
    settings = settings_of({"prompts": "a", "schedule": LEVELS})
    assert settings.steps == 3
    again = Settings.from_json(settings.to_json())
    assert again == settings
    assert again.sigmas.tolist() == list(LEVELS)
    assert again.flow["schedule"] == list(LEVELS)


def test_steps_must_be_those_of_the_table():
    with pytest.raises(SettingsError, match="steps must be 3, those of the schedule; got 28"):
        settings_of({"prompts": "a", "schedule": LEVELS, "steps": 28})


@pytest.mark.parametrize("levels", [(1.0,), (1.0, 0.5), (0.9, 0.0), (1.0, 0.5, 0.5, 0.0), (1.0, "a", 0.0)])
def test_levels_must_fall_from_one_to_zero(levels):
    with pytest.raises(SettingsError, match="levels must fall strictly from 1 to 0"):
        settings_of({"prompts": "a", "schedule": levels})


@pytest.mark.parametrize("text", ["", "{}", "[1, 0]", '{"format": "sd35.Calibration 1"}'])
def test_a_file_that_is_no_table_is_refused(text, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"table\.json is (no table|damaged)"):
        settings_of({"prompts": "a", "schedule": path})


@pytest.mark.parametrize("computed", [[1, 0], [0, 0], [0, 1.5], [], "01"])
def test_steps_of_a_file_are_checked_as_those_of_a_user(computed, tmp_path):
    made = flow.Calibration(LEVELS, "optimal_steps", 1, 1, 0.0)
    path = tmp_path / "table.json"
    path.write_text(calibration_text(made).replace('"computed": null', f'"computed": {json.dumps(computed)}'))
    with pytest.raises(SettingsError, match="cache"):
        settings_of({"prompts": "a", "schedule": path, "cache": path})


def test_a_budget_is_what_is_drawn_with_it_and_its_search_is_counted(pipe, monkeypatch):
    monkeypatch.setattr("sd35.tasks.calibrate.FINE", 12)
    given = {"guidance": {"interval": (0.5, 1.0)}, "guidance_scale": 4.5}
    calls: list[float] = []
    handle = pipe.mmdit.register_forward_pre_hook(lambda module, inputs: calls.append(float(inputs[1][0])))
    try:
        found = pipe.calibrate(["a"], steps=6, budget=3, **given)
        assert found.evaluations == len(calls)
        calls.clear()
        pipe.generate("a", schedule=found.sigmas, cache=found.computed, **given)
    finally:
        handle.remove()
    assert calls == found.table[list(found.computed)].tolist()
    assert len(calls) == 3
    with pytest.raises(SettingsError, match="budget must be at least 2"):
        pipe.calibrate(["a"], steps=6, budget=1, **given)


def test_the_command_makes_a_table_that_generate_draws_with(model_folder, tmp_path, monkeypatch, capsys):
    from sd35.cli import main

    monkeypatch.setattr("sd35.tasks.calibrate.FINE", 12)
    monkeypatch.chdir(tmp_path)
    model = ["-m", str(model_folder)]
    asked = ["--steps", "4", "--bound", "0.3", "--budget", "3"]
    assert main(["calibrate", "a", "b", *asked, "-o", "four.json", *model]) == 0
    held = json.loads((tmp_path / "four.json").read_text())
    assert held["settings"]["prompts"] == ["a", "b"]
    assert held["samples"] == 2
    levels = held["sigmas"]
    assert all(after >= 0.3 * before * (1 - 1e-6) for before, after in pairwise(levels[:-1]))
    assert len(held["computed"]) == 3
    table = ["--schedule", "four.json", "--cache", "four.json"]
    assert main(["generate", "a", *table, "-o", "a.png", *model]) == 0
    assert read_settings("a.png").cache == tuple(held["computed"])
    assert main(["generate", "--from-image", "a.png", "-o", "again.png", *model]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    for other in ([], ["--schedule", "tailed"]):
        assert main(["generate", "a", "--cache", "four.json", *other, "-o", "b.png", *model]) == 2
        assert "--cache: the steps of four.json belong to the table in it" in capsys.readouterr().err
    assert main(["calibrate", "a", "--steps", "4", "-o", "four.json", *model]) == 2
    assert main(["calibrate", "a", "--steps", "4", "--budget", "5", "-o", "five.json", *model]) == 2
    assert "--budget must be at most 4" in capsys.readouterr().err
    assert main(["calibrate", "a", "--steps", "4", "--zero-steps", "1", "-o", "five.json", *model]) == 2
    assert "calibrate without" in capsys.readouterr().err


def test_a_file_brings_the_solver_that_it_was_made_for(model_folder, tmp_path, monkeypatch, capsys):
    from sd35.cli import main

    monkeypatch.setattr("sd35.tasks.calibrate.FINE", 12)
    monkeypatch.chdir(tmp_path)
    model = ["-m", str(model_folder)]
    asked = ["calibrate", "a", "--steps", "3", "--solver", "leapfrog", "-o", "three.json", *model]
    assert main([*asked, "--calibration", "acceleration"]) == 2
    assert "only with the calibration search" in capsys.readouterr().err
    assert main([*asked, "--calibration", "search", "--budget", "2"]) == 2
    assert "with the calibrations optimal_steps and acceleration" in capsys.readouterr().err
    assert main([*asked, "--calibration", "search", "--solver", "sde"]) == 2
    assert "no table is searched for 'sde', which draws noise" in capsys.readouterr().err
    assert main([*asked, "--calibration", "search", "--guidance-interval", "0.6", "1"]) == 0
    made = read_calibration("three.json")
    assert made.solver == "leapfrog"
    assert min(abs(level - 0.6) for level in made.sigmas) < 1e-6
    drawing = ["generate", "a", "--schedule", "three.json", *model]
    assert main([*drawing, "-o", "a.png"]) == 0
    assert "made for" not in capsys.readouterr().err
    settings = read_settings("a.png")
    assert (settings.solver, settings.schedule) == ("leapfrog", made.sigmas)
    assert main([*drawing, "--solver", "ab2", "-o", "b.png"]) == 0
    assert "three.json was made for the solver leapfrog, and ab2 is used" in capsys.readouterr().err
    assert read_settings("b.png").solver == "ab2"

    before = Settings(prompts="a", solver="dopri5", solver_options={"rtol": 1e-2})
    after = settings_of({"schedule": "three.json", "solver": None}, before)
    assert (after.solver, dict(after.solver_options), after.steps) == ("leapfrog", {}, 3)
    own = Generate.of("a", {"schedule": "three.json"}, variant=Variant("sd3.5-large", 2.0))
    assert (own.settings.solver, own.settings.steps, own.settings.guidance_scale) == ("leapfrog", 3, 4.5)
    assert "40 steps" not in "".join(own.notes)
    assert "shift" not in "".join(own.notes)
    (tmp_path / "bad.json").write_text((tmp_path / "three.json").read_text().replace("leapfrog", "frog"))
    with pytest.raises(SettingsError, match=r"bad\.json is damaged: there is no solver 'frog'"):
        read_calibration("bad.json")
