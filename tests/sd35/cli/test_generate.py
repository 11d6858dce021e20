"""`sd35 generate`."""

import io
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flow import SkipLayer
from sd35 import Guidance, Settings, load, read_settings
from sd35.cli import generate
from sd35.saved.png import png_info

QUICK = ("--steps", "2")


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_options_reach_the_settings(sd35, model_folder, tmp_path) -> None:
    path = tmp_path / "a.png"
    options = [
        *("--negative", "blurry", "--seed", "7", "--steps", "2", "--cfg", "2.5", "--width", "48"),
        *("--height", "32", "--solver", "heun", "--schedule", "linear", "--schedule-shift", "1.5"),
        *("--policy", "diffusers", "--missing", "drop", "--no-t5", "--dtype", "bfloat16", "--device", "cpu"),
    ]
    status, out, err = sd35("generate", "a red circle", "-m", model_folder, "-o", path, *options)
    assert (status, out, err) == (0, f"{path}\n", "")
    settings = read_settings(path)
    assert (settings.prompts[0].text, settings.negative.text) == ("a red circle", "blurry")
    assert (settings.seed, settings.steps, settings.guidance_scale) == (7, 2, 2.5)
    assert (settings.width, settings.height) == (48, 32)
    assert (settings.solver, settings.schedule, settings.schedule_shift) == ("heun", "linear", 1.5)
    assert (settings.policy, settings.missing) == ("diffusers", "drop")
    made_with = settings.made_with
    assert (made_with["dtype"], made_with["t5"], made_with["device"]) == ("bfloat16", "no", "cpu")
    assert Image.open(path).size == (48, 32)


def test_without_options_the_settings_are_the_defaults(sd35, model_folder, tmp_path, pipe) -> None:
    sd35("generate", "a", "-m", model_folder, "-o", tmp_path / "a.png", *QUICK)
    assert read_settings(tmp_path / "a.png") == pipe.complete(
        Settings(prompts=read_settings(tmp_path / "a.png").prompts, steps=2)
    )


def test_a_picture_is_repeated_from_itself(sd35, model_folder, tmp_path) -> None:
    first, second, other = (tmp_path / name for name in ("1.png", "2.png", "3.png"))
    arguments = ("-m", model_folder, *QUICK, "--no-t5", "--dtype", "bfloat16", "--images-per-prompt", "2")
    sd35("generate", "a red circle", "--seed", "5", *arguments, "-o", first)
    made = tmp_path / "1-001.png"
    assert sd35("generate", "--from-image", made, "-o", second)[0] == 0
    assert np.array_equal(pixels(made), pixels(second))
    assert read_settings(made) == read_settings(second)
    assert sd35("generate", "--from-image", made, "--seed", "9", "-o", other)[0] == 0
    assert read_settings(other).seed == 9
    assert not np.array_equal(pixels(made), pixels(other))


@pytest.fixture(scope="module")
def other(model_folder, tmp_path_factory) -> Path:
    """The model with other weights in every part."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(model_folder, folder)
    for path in folder.rglob("*.safetensors"):
        save_file({name: 1.25 * tensor for name, tensor in load_file(path).items()}, path)
    return folder


def test_parts_that_came_from_elsewhere_come_from_there_again(sd35, model_folder, other, tmp_path) -> None:
    first, second, changed, plain = (tmp_path / f"{name}.png" for name in range(4))
    arguments = ("-m", model_folder, "--text-encoders", other, "--vae", other, *QUICK)
    assert sd35("generate", "a red circle", *arguments, "-o", first)[0] == 0
    assert sd35("generate", "--from-image", first, "-o", second) == (0, f"{second}\n", "")
    assert np.array_equal(pixels(first), pixels(second))
    assert read_settings(first) == read_settings(second)
    assert sd35("generate", "--from-image", first, "--vae", model_folder, "-o", changed)[0] == 0
    made_with = read_settings(changed).made_with
    assert made_with["text_encoders_source"] == str(other)
    assert "vae_source" not in made_with  # since it is the model's own
    sd35("generate", "a red circle", "-m", model_folder, *QUICK, "-o", plain)
    pictures = [pixels(path).tobytes() for path in (first, changed, plain)]
    assert len(set(pictures)) == 3  # each part matters
    assert not {"text_encoders_source", "vae_source"} & read_settings(plain).made_with.keys()


def test_parts_compute_again_in_their_own_dtypes_and_t5_comes_from_its_source(
    sd35, model_folder, other, tmp_path
) -> None:
    t5 = other / "text_encoders" / "t5xxl_fp16.safetensors"
    dtypes = {"mmdit": torch.bfloat16, "clip_l": torch.float32, "t5": torch.float32}
    pipe = load(model_folder, dtype=dtypes, t5=t5)
    (first,) = pipe.generate("a red circle", steps=2).save(tmp_path / "1.png")
    again, cast = tmp_path / "2.png", tmp_path / "3.png"
    assert sd35("generate", "--from-image", first, "-o", again, "--device", "cpu")[0] == 0
    assert np.array_equal(pixels(first), pixels(again))
    settings = read_settings(first)
    assert read_settings(again) == settings
    own = {name: value for name, value in settings.made_with.items() if "dtype" in name or "t5" in name}
    assert own == {
        "dtype": "bfloat16",
        "vae_dtype": "float32",  # no entry, so the usual one
        "clip_l_dtype": "float32",
        "clip_g_dtype": "float32",
        "t5_dtype": "float32",
        "t5": "yes",
        "t5_source": str(t5),
    }
    frugal = load(model_folder, dtype=dtypes, t5=t5, one_by_one=True)
    assert frugal.complete(settings).made_with == settings.made_with
    assert sd35("generate", "--from-image", first, "-o", cast, "--dtype", "float32", "--no-t5")[0] == 0
    made_with = read_settings(cast).made_with
    assert (made_with["dtype"], made_with["t5"]) == ("float32", "no")
    assert not any(name.endswith("_dtype") for name in made_with)


def test_what_cannot_be_restored_is_told(sd35, model_folder, tmp_path) -> None:
    first, moved, again = (tmp_path / f"{name}.png" for name in range(3))
    sd35("generate", "a", "-m", model_folder, "-o", first, *QUICK)
    settings = replace(read_settings(first), made_with={"device": "elsewhere", "dtype": "float32"})
    with Image.open(first) as picture:
        picture.save(moved, pnginfo=png_info(settings))
    status, _, err = sd35("generate", "--from-image", moved, "-o", again)
    assert status == 0
    assert err.startswith("note: this was drawn on elsewhere, and is computed on")
    assert sd35("generate", "--from-image", moved, "-o", again, "--overwrite", "--device", "cpu")[2] == ""


def test_a_file_of_prompts(sd35, model_folder, tmp_path, monkeypatch) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\n  ein Kreis ●  \n", encoding="utf-8")
    _, out, _ = sd35("generate", "--prompts-file", file, "-m", model_folder, "-o", tmp_path / "p.png", *QUICK)
    paths = [Path(line) for line in out.splitlines()]
    assert [path.name for path in paths] == ["p-000.png", "p-001.png"]
    assert [read_settings(path).prompts[0].text for path in paths] == ["a red circle", "ein Kreis ●"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a star\n"))
    assert generate.read_prompts("-") == ["a star"]


def test_without_a_name_a_picture_is_named_after_its_prompt(
    sd35, model_folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, _ = sd35("generate", "A red/blue circle!", "--seed", "3", "-m", model_folder, *QUICK)
    assert out == "a-red-blue-circle-3.png\n"
    assert (tmp_path / "a-red-blue-circle-3.png").is_file()


def test_names_stay_short_and_sane() -> None:
    from textenc import Prompt

    def name(text: str) -> str:
        return generate.default_name(Settings(prompts=(Prompt(text),)))

    assert name("") == name("../..") == "picture-0.png"
    assert len(name("語" * 500).encode()) < 200


def test_latents_can_be_kept(sd35, model_folder, tmp_path) -> None:
    from sd35 import State

    latents = tmp_path / "a.safetensors"
    arguments = ("-m", model_folder, "-o", tmp_path / "a.png", "--save-latents", latents, *QUICK)
    status, out, _ = sd35("generate", "a", "--solver", "reversible_heun", *arguments)
    assert status == 0
    assert out.splitlines()[-1] == str(latents)
    assert State.load(latents).companion is not None


def test_metadata_can_be_left_out_and_bits_added(sd35, model_folder, tmp_path) -> None:
    path = tmp_path / "a.png"
    sd35("generate", "secret words", "-m", model_folder, "-o", path, "--no-metadata", "--bits", "16", *QUICK)
    assert b"secret" not in path.read_bytes()
    assert path.read_bytes()[24] == 16  # the bit depth in IHDR
    status, _, err = sd35("generate", "--from-image", path, "-o", tmp_path / "b.png")
    assert (status, "holds no settings" in err) == (2, True)


def test_what_was_cut_is_told(sd35, model_folder, tmp_path) -> None:
    prompt = "a red circle " * 60
    _, _, err = sd35("generate", prompt, "-m", model_folder, "-o", tmp_path / "a.png", *QUICK)
    assert err.startswith("note: prompt 0, clip_l: not read")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give a prompt"),
        (["a", "--prompts-file", "x"], "give one of them"),
        (["--prompts-file", "absent.txt"], "No such file or directory: absent.txt"),
        (["a", "--width", "100"], "width must be a multiple of 16, got 100; the nearest is 96"),
        (["a", "--width", "144"], "width must be at most 128"),
        (["a", "--steps", "0"], "steps must be a whole number from 1 to"),
        (["a", "--solver", "magic"], "solver must be one of euler"),
        (["a", "--policy", "magic"], "policy must be one of"),
        (["a", "--cfg", "nan"], "--guidance-scale must be a finite number"),
        (["a", "--seed", "-1"], "seed must be a whole number from 0 to"),
        (["a", "--bits", "9"], "8 or 16 bits"),
        (["a", "--device", "tpu"], "no kind of device 'tpu'"),
        (["a", "--dtype", "int4"], "dtype must be one of"),
        (["a", "-o", "nowhere/a.png"], "there is no folder nowhere"),
        (["a", "-o", "a.gif"], "must be a .png file"),
        (["a", "-o", "there.png"], "there.png exists"),
        (["a", "--save-latents", "there.safetensors"], "there.safetensors exists"),
        (["--from-image", "there.png"], "cannot be read as a picture"),
        (["--from-image", "absent.png"], "there is no picture absent.png"),
        (["a\udcff"], "surrogate"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    sd35, model_folder, tmp_path, monkeypatch, arguments, message
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.png").write_bytes(b"mine")
    Path("there.safetensors").write_bytes(b"mine")
    status, out, err = sd35("generate", *arguments, "-m", model_folder)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.png", "there.safetensors"]
    assert Path("there.png").read_bytes() == b"mine"


def test_overwriting_has_to_be_allowed(sd35, model_folder, tmp_path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    arguments = ("generate", "a", "-m", model_folder, "-o", path, *QUICK)
    assert sd35(*arguments)[0] == 2
    assert path.read_bytes() == b"old"
    assert sd35(*arguments, "--overwrite")[0] == 0
    assert pixels(path).shape == (32, 32, 3)


@pytest.mark.parametrize("where", ["sampling", "writing"])
def test_an_interruption_leaves_no_file(sd35, model_folder, tmp_path, monkeypatch, where) -> None:
    from sd35.velocity import GuidedVelocity

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    def half_written(_picture, path, **_options) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    if where == "sampling":
        monkeypatch.setattr(GuidedVelocity, "__call__", interrupt)
    else:
        monkeypatch.setattr(Image.Image, "save", half_written)
    status, out, err = sd35("generate", "a", "-m", model_folder, "-o", tmp_path / "a.png", *QUICK)
    assert (status, out, err) == (130, "", "sd35 generate: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_guidance_and_options_of_the_solver_reach_the_settings(sd35, model_folder, tmp_path) -> None:
    path = tmp_path / "a.png"
    options = [
        *("--guidance-rule", "cfg_zero", "--guidance-interval", "0.1", "0.9", "--zero-steps", "1"),
        *("--skip-layer", "diffusers", "--skipped", "0", "1", "--guidance-rescale", "0.5"),
        *("--guidance-threshold", "0.99", "3", "--solver", "leapfrog", "--solver-option", "damping=0.8"),
    ]
    status, _, err = sd35(
        "generate", "a", "-m", model_folder, "-o", path, "--device", "cpu", *QUICK, *options
    )
    assert (status, err) == (0, "")
    settings = read_settings(path)
    assert settings.guidance == Guidance(
        rule="cfg_zero",
        interval=(0.1, 0.9),
        zero_steps=1,
        skip_layer=SkipLayer(2.8, 0.01, 0.2, (0, 1)),
        rescale=0.5,
        threshold=(0.99, 3.0),
    )
    assert settings.solver_options == {"damping": 0.8}
    sd35("generate", "--from-image", path, "-o", tmp_path / "b.png", "--device", "cpu")
    assert (pixels(tmp_path / "b.png") == pixels(path)).all()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--solver-option", "damping"), "an option is given as NAME=VALUE, got 'damping'"),
        (("--solver", "leapfrog", "--solver-option", "dampening=1"), "dampening"),
    ],
)
def test_an_option_that_no_solver_takes_is_refused(sd35, model_folder, tmp_path, option, words) -> None:
    path = tmp_path / "a.png"
    status, out, err = sd35("generate", "a", "-m", model_folder, "-o", path, *QUICK, *option)
    assert status == 2
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    assert not path.exists()


def test_less_memory_is_told_and_draws_the_same_picture(sd35, model_folder, tmp_path) -> None:
    options = ("generate", "a red circle", "-m", model_folder, *QUICK, "--device", "cpu")
    sd35(*options, "-o", tmp_path / "a.png")
    status, _, err = sd35(*options, "-o", tmp_path / "b.png", "--memory", "low")
    assert status == 0
    assert err.startswith("note: memory low: text encoders one by one: about ")
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    status, _, err = sd35(*options, "-o", tmp_path / "c.png", "--memory", "least")
    assert status != 0
    assert "memory must be one of auto, off, low, lower, lowest; got 'least'" in err
