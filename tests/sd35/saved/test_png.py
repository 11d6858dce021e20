"""What a picture carries of its making."""

import pytest
from PIL import Image

from sd35 import Settings, SettingsError, read_settings
from sd35.saved.png import parameters, png_info
from textenc import Prompt

SETTINGS = Settings(
    prompts=(Prompt("a red circle, ● \x00\x1b[2J\nand more"),),
    negative=Prompt("blurry"),
    seed=7,
    width=64,
    height=32,
    model="/home/me/models/sd3.5_medium.safetensors",
    made_with={"sd35": "0.1.0"},
)


def saved(path, info=None):
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_settings_survive_the_file(tmp_path) -> None:
    assert read_settings(saved(tmp_path / "a.png", png_info(SETTINGS))) == SETTINGS


def test_the_common_text_is_as_other_tools_write_it(tmp_path) -> None:
    with Image.open(saved(tmp_path / "a.png", png_info(SETTINGS))) as picture:
        text = picture.text["parameters"]
    assert text == parameters(SETTINGS)
    assert text.splitlines() == [
        "a red circle, ●   [2J",
        "and more",
        "Negative prompt: blurry",
        "Steps: 28, Sampler: euler, Schedule type: reference, CFG scale: 4.5, Seed: 7, Size: 64x32, "
        "Model: sd3.5_medium, Shift: 3, Version: sd35 0.1.0",
    ]


def test_without_a_negative_prompt_there_is_no_line_for_it() -> None:
    assert parameters(Settings(prompts=(Prompt("a"),))).count("\n") == 1


def test_pictures_without_settings_are_told_from_damaged_ones(tmp_path) -> None:
    with pytest.raises(SettingsError, match="holds no settings"):
        read_settings(saved(tmp_path / "plain.png"))
    (tmp_path / "no.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(SettingsError, match="cannot be read as a picture"):
        read_settings(tmp_path / "no.png")
    with pytest.raises(FileNotFoundError, match="there is no picture"):
        read_settings(tmp_path / "absent.png")


def test_a_truncated_picture_is_refused(tmp_path) -> None:
    path = saved(tmp_path / "a.png", png_info(SETTINGS))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SettingsError, match="cannot be read as a picture"):
        read_settings(path)
