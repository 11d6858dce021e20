"""The two-dimensional example trains, compares and draws; with few steps of training it still does each."""

from types import ModuleType

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def moons(script) -> ModuleType:
    return script("examples/moons.py")


def test_it_runs_and_draws(moons, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(moons, "FULL", moons.flow.sigmas(25, schedule_shift=1.0, preset="linear"))
    monkeypatch.setattr(moons.reflowed, "__defaults__", (2000, 512))  # pairs, and a batch of them
    moons.main(["--steps", "40", "--points", "200", "--size", "48", "-o", str(tmp_path / "flows.png")])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("  ")[0]: line.split()[1:] for line in lines if line}
    assert set(moons.flow.PATHS) | set(moons.flow.SOLVERS) <= set(rows)
    straightness = {
        name: [float(line.split()[2 - (name == "reflowed")]) for line in lines if line.startswith(name)]
        for name in ("first flow", "reflowed")
    }
    for before, after in zip(straightness["first flow"], straightness["reflowed"], strict=True):
        assert after < before / 5
    image = Image.open(tmp_path / "flows.png")
    assert image.width > 3 * 48
    assert len(image.getcolors(100_000) or []) > 1000
