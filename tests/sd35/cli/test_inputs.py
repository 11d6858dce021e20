"""What users give to the command line beside settings: noise, prompts of single encoders, pictures."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from sd35 import State, read_settings
from sd35.version import release
from textenc import Prompt

QUICK = ("--steps", "2")


@pytest.fixture
def drawn(sd35, model_folder, tmp_path):
    """A picture of the random model."""
    path = tmp_path / "drawn.png"
    assert sd35("generate", "a red circle", "-m", model_folder, *QUICK, "-o", path)[0] == 0
    return path


def test_noise_that_was_found_is_drawn_from_again(sd35, model_folder, drawn, tmp_path) -> None:
    noise, again = tmp_path / "noise.safetensors", tmp_path / "again.png"
    assert sd35("invert", drawn, "-o", noise, "--no-measure")[0] == 0
    assert sd35("generate", "a red circle", "-m", model_folder, "--noise", noise, *QUICK, "-o", again)[0] == 0
    assert (read_settings(again).seed, Image.open(again).size) == (None, (32, 32))
    status, _, err = sd35("generate", "a", "-m", model_folder, "--noise", noise, "--seed", "3", *QUICK)
    assert (status, "seed has no effect beside noise that is given" in err) == (2, True)
    (latents,) = State(read_settings(drawn), torch.zeros(1, 16, 4, 4)).save(tmp_path / "latents.safetensors")
    status, _, err = sd35("generate", "a", "-m", model_folder, "--noise", latents, *QUICK)
    assert (status, "this state holds no noise to begin with" in err) == (2, True)
    status, out, _ = sd35("invert", drawn, "-o", tmp_path / "b.safetensors", "--noise", noise, "--no-measure")
    assert (status, "noise" in out) == (0, True)


def test_encoders_may_read_texts_of_their_own(sd35, model_folder, tmp_path) -> None:
    path = tmp_path / "a.png"
    own = ("--prompt-clip-l", "a", "--prompt-clip-g", "b", "--prompt-t5", "c")
    assert sd35("generate", "d", *own, "-m", model_folder, *QUICK, "-o", path)[0] == 0
    assert read_settings(path).prompts == (Prompt("d", clip_l="a", clip_g="b", t5="c"),)
    status, _, err = sd35("generate", *own, "-m", model_folder, "-o", tmp_path / "b.png")
    assert (status, "none for the others" in err) == (2, True)


def test_the_notation_of_other_programs_is_told_of(sd35, model_folder, tmp_path) -> None:
    for number, prompt in enumerate(
        ["a (red:1.3) circle", "a circle BREAK a square", "a <lora:x:0.5> circle"]
    ):
        arguments = ("-m", model_folder, *QUICK, "-o", tmp_path / f"{number}.png")
        _, _, err = sd35("generate", prompt, *arguments)
        assert "is read as it stands: weights, BREAK and <lora:...>" in err
    _, _, err = sd35(
        "generate", "a circle (red) at 1:30", "-m", model_folder, *QUICK, "-o", tmp_path / "b.png"
    )
    assert err == ""


def test_a_picture_with_much_text_is_a_picture(sd35, drawn, tmp_path) -> None:
    """Other programs write their whole graph of nodes into a picture, compressed."""
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "a" * 3_000_000, zip=True)
    info.add_text("sd35", read_settings(drawn).to_json())
    for _ in range(70):
        info.add(b"zTXt", b"more\0\0" + zlib.compress(os.urandom(1_000) + b"b" * 1_040_000))
    large = tmp_path / "large.png"
    with Image.open(drawn) as picture:
        picture.save(large, pnginfo=info)
    assert read_settings(large) == read_settings(drawn)
    assert sd35("invert", large, "-o", tmp_path / "noise.safetensors", "--no-measure")[0] == 0


def test_an_edit_of_an_unknown_picture_follows_what_is_said(
    sd35, model_folder, drawn, tmp_path, pipe
) -> None:
    """The inverse of a picture without settings takes the guidance scale that is given."""
    plain, edited = tmp_path / "plain.png", tmp_path / "edited.png"
    Image.open(drawn).save(plain)
    arguments = (
        "--source-prompt",
        "a red circle",
        "--cfg",
        "2.5",
        *QUICK,
        "-m",
        model_folder,
        "--device",
        "cpu",
    )
    assert sd35("edit", plain, "a red circle", *arguments, "-o", edited, "--bits", "16")[0] == 0
    same = pipe.edit(plain, "a red circle", "a red circle", guidance_scale=2.5, steps=2)
    apart = pipe.edit(
        plain, "a red circle", "a red circle", guidance_scale=2.5, source_guidance_scale=4.5, steps=2
    )
    source = pipe.encode(Image.open(plain))
    assert float((same.latents - source).norm()) < 0.05 * float((apart.latents - source).norm())


@pytest.mark.parametrize("command", ["generate", "invert", "edit"])
def test_a_size_that_no_generation_has_is_told_before_anything_is_loaded(
    sd35, tmp_path, monkeypatch, command
) -> None:
    def fail(*_arguments, **_options) -> None:
        pytest.fail("the model was looked for")

    monkeypatch.setattr("sd35.found.find", fail)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 32)).save("odd.png")
    words = {
        "generate": ["a", "--width", "40"],
        "invert": ["odd.png", "a", "-o", "n.safetensors"],
        "edit": ["odd.png", "b", "--source-prompt", "a", "-o", "b.png"],
    }[command]
    status, _, err = sd35(command, *words)
    assert (status, err.count("\n"), "multiple" in err) == (2, 1, True)


def test_so_many_steps_are_refused_at_once(sd35) -> None:
    status, _, err = sd35("generate", "a", "--steps", "100000000")
    assert (status, "steps must be a whole number from 1 to 10000, got 100000000" in err) == (2, True)


def test_the_model_of_a_picture_is_found_from_everywhere_and_other_weights_are_told(
    sd35, model_folder, tmp_path, monkeypatch
) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    monkeypatch.chdir(folder)
    path, again = tmp_path / "a.png", tmp_path / "b.png"
    assert sd35("generate", "a", "-m", ".", *QUICK, "-o", path)[0] == 0
    assert read_settings(path).model == str(folder)
    monkeypatch.chdir(tmp_path)
    assert sd35("generate", "--from-image", path, "-o", again) == (0, f"{again}\n", "")
    file = folder / "text_encoders" / "clip_l.safetensors"
    save_file({name: 1.25 * tensor for name, tensor in load_file(file).items()}, file)
    _, _, err = sd35("generate", "--from-image", path, "-o", again, "--overwrite")
    assert "are not those that this picture was drawn with" in err
    _, _, err = sd35("invert", path, "-o", tmp_path / "n.safetensors", "--no-measure")
    assert "note: weights: " in err


def test_files_have_the_users_usual_mode(sd35, model_folder, tmp_path) -> None:
    (tmp_path / "usual").touch()
    names = ("a.png", "a.safetensors", "a.html")
    paths = [tmp_path / name for name in names]
    options = ("-o", paths[0], "--save-latents", paths[1], "--report", paths[2])
    assert sd35("generate", "a", "-m", model_folder, *QUICK, *options)[0] == 0
    assert {path.stat().st_mode for path in paths} == {(tmp_path / "usual").stat().st_mode}


def test_closed_streams_do_no_harm(model_folder, tmp_path) -> None:
    program = f"{sys.executable} -m sd35"
    command = f"{program} generate a -m {model_folder} --steps 1 -o a.png 2>&- && {program} list solvers >&-"
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "a.png\n")


def test_version_and_lists(sd35) -> None:
    assert sd35("--version") == (0, f"sd35 {release()}\n", "")
    _, out, _ = sd35("list")
    for word in (
        "solvers",
        "euler",
        "methods",
        "fireflow",
        "edits",
        "rf_inversion",
        "apg",
        "reference-exact",
    ):
        assert word in out
    _, out, _ = sd35("list", "methods")
    assert ("naive" in out, "dopri5" in out) == (True, False)
    assert sd35("list", "colours")[0] == 2
