"""The live comparison, where diffusers and transformers are installed; skipped by name elsewhere."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("diffusers", reason="needs the extra 'reference'")
    pytest.importorskip("transformers", reason="needs the extra 'reference'")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(sys, "argv", ["live.py"])
    import live

    return live


SMALL = ["--height", "64", "--width", "48", "--steps", "2"]


@pytest.mark.parametrize("layout", ["diffusers", "official"])
def test_no_stage_departs(layout: str, live, capsys) -> None:
    assert live.main(["--random", layout, *SMALL]) == 0
    table = capsys.readouterr().out
    for stage in (
        "clip_l token ids",
        "t5 encoder.block.1",
        "pooled",
        "mmdit joint_blocks.3.x",
        "state 2",
        "pixels",
    ):
        assert f"\n{stage} " in table, stage


def test_first_departure_is_named(live, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shift and scale exchanged in this project's blocks: all before them agrees, and they are named."""
    import mmdit.blocks

    monkeypatch.setattr(mmdit.blocks, "modulate", lambda x, shift, scale: x * (1 + shift) + scale)
    assert live.main(["--random", "diffusers", *SMALL]) == 1
    assert "first departure: mmdit joint_blocks.0." in capsys.readouterr().out
