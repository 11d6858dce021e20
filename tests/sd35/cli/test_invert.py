"""`sd35 invert`."""

import pytest
import torch

from sd35 import State
from sd35.noise import draw_noise, generators

FIELD = ("--steps", "3", "--cfg", "2")


@pytest.fixture
def made(sd35, model_folder, tmp_path):
    """A picture and its latents, by a solver's name."""

    def make(solver: str):
        picture, latents = tmp_path / f"{solver}.png", tmp_path / f"{solver}.safetensors"
        status, _, err = sd35(
            *("generate", "a red circle", "-m", model_folder, "--solver", solver, "--seed", "4", *FIELD),
            *("-o", picture, "--save-latents", latents),
        )
        assert (status, err) == (0, "")
        return picture, latents

    return make


def test_a_saved_generation_is_undone_without_further_words(sd35, made, tmp_path) -> None:
    _, latents = made("bitexact")
    status, out, err = sd35("invert", latents, "-o", tmp_path / "noise.safetensors")
    assert (status, err) == (0, "")
    noise = State.load(tmp_path / "noise.safetensors").noise
    assert noise is not None
    assert torch.equal(noise, draw_noise(generators([4]), (16, 4, 4)))
    *table, summary, path = out.splitlines()
    assert [line.split()[0] for line in table] == ["stage", "solver", "noise"]
    assert summary.endswith("method undo")
    assert path == str(tmp_path / "noise.safetensors")


def test_a_picture_tells_its_own_prompt_and_losses(sd35, made, tmp_path) -> None:
    picture, _ = made("euler")
    arguments = ("-o", tmp_path / "noise.safetensors", "--accuracy", "1e-3")
    status, out, err = sd35("invert", picture, *arguments)
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[:5]] == [
        "stage",
        "encoder",
        "rounding",
        "solver",
        "noise",
    ]
    status, out, err = sd35("invert", picture, "a star", *arguments, "--overwrite", "--no-measure")
    assert (status, "solver" in out, "encoder" in out) == (0, False, False)
    assert err.startswith("note: prompts: not what the picture was drawn with")
    assert "so the noise found is at" in err.splitlines()[1]


def test_mistakes_are_one_line_and_leave_nothing(sd35, made, model_folder, tmp_path) -> None:
    _, latents = made("euler")
    _, undone = made("bitexact")
    before = sorted(tmp_path.iterdir())
    plain = tmp_path / "plain.png"
    sd35("generate", "a", "-m", model_folder, *FIELD, "--no-metadata", "-o", plain)
    cases = [
        ((plain, "-m", model_folder), "which prompt was it drawn from"),
        ((tmp_path / "absent.png",), "No such file"),
        ((latents, "--method", "guess"), "method must be one of exact, naive"),
        ((latents, "--accuracy", "0"), "accuracy must be positive"),
        ((latents, "--method-option", "max_evaluations=1e2"), "must be a whole number, got 100.0"),
        ((latents, "--refine-steps", "3"), "these are latents already"),
        ((undone, "--method-option", "iterations=1"), "undone, which takes no options: leave out iterations"),
        ((undone, "--method", "guess"), "method must be one of exact, naive"),
        (
            (undone, "--accuracy", "1"),
            "accuracy has no effect here, only with the exact method, where no gen",
        ),
        ((model_folder / "sd3.5_random.safetensors",), "is no saved state"),
    ]
    for arguments, message in cases:
        status, out, err = sd35("invert", *arguments, "-o", tmp_path / "noise.safetensors")
        assert (status, out) == (2, "")
        assert message in err
    assert sorted(tmp_path.iterdir()) == sorted([*before, plain])


def test_each_step_can_be_printed(sd35, made, tmp_path) -> None:
    _, latents = made("euler")
    status, out, _ = sd35("invert", latents, "-o", tmp_path / "noise.safetensors", "--per-step")
    head, *steps = out.splitlines()[-6:-2]
    assert (status, head.split()) == (0, ["step", "sigma", "evaluations", "residual", "tolerance"])
    assert [line.split()[0] for line in steps] == ["2", "1", "0"]


def test_options_of_another_method_reach_it(sd35, model_folder, tmp_path) -> None:
    latents = tmp_path / "latents.safetensors"
    given = ("-m", model_folder, "--device", "cpu")
    sd35("generate", "a", *given, "-o", tmp_path / "a.png", "--steps", "3", "--save-latents", latents)
    options = ("--method", "fixed_point", "--method-option", "iterations=2", "--no-measure")
    status, out, _ = sd35("invert", latents, "-o", tmp_path / "noise.safetensors", *options, *given)
    assert (status, "6 evaluations, method fixed_point" in out) == (0, True)
    wrong = ("--method", "fixed_point", "--method-option", "rounds=2")
    status, _, err = sd35("invert", latents, "-o", tmp_path / "b.safetensors", *wrong, *given)
    assert (status, err.count("\n")) == (2, 1)
    assert "takes no option 'rounds'; it takes iterations, average" in err
