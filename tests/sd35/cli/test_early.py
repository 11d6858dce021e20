"""What the commands check before they read weights, which takes minutes where a model is large."""

import pytest

from sd35.cli import main


@pytest.fixture(scope="module")
def picture(model_folder, tmp_path_factory):
    """Drawn here, so it brings its prompt and its model."""
    path = tmp_path_factory.mktemp("drawn") / "picture.png"
    assert main(["generate", "a", "-m", str(model_folder), "--steps", "2", "-o", str(path)]) == 0
    return path


@pytest.fixture
def run(sd35, model_folder, picture, tmp_path, monkeypatch):
    """Runs a command in an empty folder; a weight that is read fails the test."""

    def fail(*_arguments) -> None:
        pytest.fail("weights were read")

    monkeypatch.setattr("weights.load.load_into", fail)
    monkeypatch.chdir(tmp_path)
    return lambda command, *arguments: sd35(
        command, *(picture if one == "PICTURE" else one for one in arguments), "-m", model_folder
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "a", "--width", "144"), "width must be at most 128"),
        (("generate", "a", "--vae", "absent"), "there is no file or folder absent"),
        (("generate", "a", "--text-encoders", "absent"), "there is no file or folder absent"),
        (("bench", "-m", "tiny", "--pixels", "144"), "width must be at most 128"),
        (("attention", "a circle", "--block", "9"), "blocks must be 0 to 1, got [9]"),
        (("attention", "a circle", "--at-step", "28"), "--at-step must be 0 to 27, got 28"),
        (("attention", "a circle", "--at-step", "-1"), "--at-step must be 0 to 27, got -1"),
        (("edit", "PICTURE", "b", "-o", "b.png", "--method", "wish"), "method must be one of inversion"),
        (("edit", "PICTURE", "b", "-o", "b.png", "--strength", "0"), "strength must be above 0"),
        (("invert", "PICTURE", "-o", "n.safetensors", "--method", "guess"), "method must be one of exact"),
        (("invert", "PICTURE", "-o", "n.safetensors", "--accuracy", "0"), "accuracy must be positive"),
        (
            ("invert", "PICTURE", "-o", "n.safetensors", "--method", "naive", "--accuracy", "1e-3"),
            "accuracy has no effect here, only with the exact method",
        ),
    ],
)
def test_mistakes_are_found_before_weights_are_read(run, tmp_path, arguments, message) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
