"""The reader of signs, shortened to a step: that it runs, and that its counts also say no."""

import importlib
from pathlib import Path

import pytest

from sd35.marks import GaussianShading
from sd35.noise import draw_noise, generators

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def signs(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("watermark_signs")


def test_what_is_counted(signs) -> None:
    """All signs, one message in four with a fault, and noise that tells nothing."""
    shading, keys = GaussianShading((16, 16, 16)), range(signs.FIRST_KEY, signs.FIRST_KEY + 4)
    noise = shading.hide(draw_noise(generators(range(4)), (16, 16, 16)), keys)
    assert signs.counts(3 * noise, noise, False) == ["100.0 %", "4 of 4", "0 of 4", "4 of 4"]
    faulty = noise.clone()
    faulty[0, 0] *= -1  # four bits of the first message
    assert signs.counts(faulty, noise, False) == ["98.4 %", "4 of 4", "0 of 4", "3 of 4"]
    right, *counted = signs.counts(draw_noise(generators(range(10, 14)), (16, 16, 16)), noise, False)
    assert abs(float(right.split()[0]) - 50) < 2
    assert counted == ["0 of 4"] * 3
    assert signs.counts(noise, noise, True) == ["", "", "0 of 4", ""]


def test_it_learns_and_reads(signs, monkeypatch, tmp_path, capsys) -> None:
    learned = importlib.import_module("signs_learned")
    for module, constants in (
        (learned, {"TOGETHER": 1, "EACH": 1, "FEW": {"steps": 1}}),
        (signs, {"TOGETHER": 1, "HOW": {"steps": 1}, "FILES": {"PNG": signs.FILES["PNG"]}}),
        (signs, {"EXACTLY": ("PNG",), "EXACT": 1}),
    ):
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
    monkeypatch.setattr("sd35.marks.OTHERS", 9)
    monkeypatch.setattr("sd35.train.loop.save_state", lambda *_: None)  # 100 MB
    once = [f"--{what}=1" for what in ("pairs", "steps", "pictures", "inverted")]
    signs.main(["--output", str(tmp_path), *once])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [f"{picture}: {by}" for picture, by, *_ in rows] == [
        *("latents: naive", "latents: one forward"),
        *("PNG: naive", "PNG: exact", "PNG: one forward"),
        *("painted: naive", "painted: one forward"),
    ]
