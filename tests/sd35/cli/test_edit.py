"""sd35 edit."""

import pytest
from PIL import Image

from sd35 import State
from sd35.cli import main

FIELD = ["--steps", "2", "--cfg", "1.5"]


@pytest.fixture(scope="module")
def drawn(model_folder, tmp_path_factory):
    """A picture with its settings, and its latents with a companion."""
    folder = tmp_path_factory.mktemp("drawn")
    picture, latents = folder / "picture.png", folder / "latents.safetensors"
    command = ["generate", "a red circle", "-m", str(model_folder), "--solver", "bitexact", *FIELD]
    assert main([*command, "-o", str(picture), "--save-latents", str(latents)]) == 0
    return folder


def test_the_same_prompt_draws_the_same_picture_again(drawn, tmp_path, capsys) -> None:
    output = tmp_path / "same.png"
    assert main(["edit", str(drawn / "latents.safetensors"), "a red circle", "-o", str(output)]) == 0
    assert capsys.readouterr().out.split() == [str(output)]
    with Image.open(output) as edited, Image.open(drawn / "picture.png") as picture:
        assert edited.tobytes() == picture.tobytes()


@pytest.mark.parametrize("method", ["inversion", "direct_edit", "flow_edit", "rf_inversion"])
def test_a_picture_tells_its_own_prompt(drawn, tmp_path, method) -> None:
    output = tmp_path / "edited.png"
    command = ["edit", str(drawn / "picture.png"), "a blue star", "-o", str(output), "--method", method]
    seed = [] if method in ("inversion", "direct_edit") else ["--seed", "3"]
    assert main([*command, "--strength", "0.5", *seed]) == 0
    with Image.open(output) as edited:
        assert edited.size == (32, 32)


def test_nothing_is_written_on_a_mistake(drawn, model_folder, tmp_path, capsys) -> None:
    output = tmp_path / "edited.png"
    plain = tmp_path / "plain.png"
    Image.new("RGB", (32, 32)).save(plain)
    mistakes = {
        "which prompt was it drawn from? Give it (to sd35 edit as --source-prompt)": [str(plain), "b"],
        "method must be one of": [str(drawn / "picture.png"), "b", "--method", "wish"],
        "gamma has no effect here, only with rf_inversion": [
            str(drawn / "picture.png"),
            "b",
            "--gamma",
            "0.2",
        ],
        "average has no effect here, only with flow_edit": [
            str(drawn / "picture.png"),
            "b",
            "--average",
            "2",
        ],
        "accuracy must be positive": [
            *(str(drawn / "picture.png"), "b"),
            *("--solver", "euler", "--accuracy", "0"),
        ],
        "no picture": [str(tmp_path / "absent.png"), "b"],
    }
    for message, arguments in mistakes.items():
        status = main(["edit", *arguments, "-o", str(output), "-m", str(model_folder)])
        error = capsys.readouterr().err
        assert status == 2, error
        assert len(error.splitlines()) == 1, error
        if message != "no picture":
            assert message in error
        assert not output.exists()


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["--schedule-shift", "2"], {"schedule_shift": 2.0}),
        (["--strength", "0.5"], {"strength": 0.5}),
        (["--method", "flow_edit", "--seed", "3"], {"method": "flow_edit", "seed": 3}),
        (["--cfg", "2.5", "--negative", "b"], {"guidance_scale": 2.5, "negative": "b"}),
    ],
)
def test_a_reversible_state_is_edited_alike_from_python(drawn, pipe, tmp_path, words, given) -> None:
    """A companion belongs to its own flow: where that is changed, both routes go without it."""
    latents, output = drawn / "latents.safetensors", tmp_path / "edited.png"
    assert main(["edit", str(latents), "a blue star", "-o", str(output), "--device", "cpu", *words]) == 0
    edited = pipe.edit(State.load(latents), "a blue star", **given)
    with Image.open(output) as picture:
        assert picture.tobytes() == edited.images[0].tobytes()


def test_existing_files_are_kept(drawn, tmp_path, capsys) -> None:
    output = tmp_path / "edited.png"
    output.write_bytes(b"mine")
    assert main(["edit", str(drawn / "picture.png"), "b", "-o", str(output)]) == 2
    assert output.read_bytes() == b"mine"
    assert "exists" in capsys.readouterr().err


def test_a_wrong_size_is_refused(model_folder, tmp_path, capsys) -> None:
    odd = tmp_path / "odd.png"
    Image.new("RGB", (40, 32)).save(odd)
    arguments = ["edit", str(odd), "b", "--source-prompt", "a", "-m", str(model_folder)]
    assert main([*arguments, "-o", str(tmp_path / "out.png")]) == 2
    assert "a picture of 40 x 32 is none of this model's" in capsys.readouterr().err
