"""The live comparison, where diffusers and transformers are installed; skipped by name elsewhere."""

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _one_thread_and_no_grad(one_thread: None) -> None:
    """On this processor alone: both implementations run on the same, and round alike."""


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


@pytest.fixture
def folder(live, tmp_path: Path) -> Path:
    """A whole random model, as diffusers saves it."""
    live.theirs.random_folder(tmp_path / "model", "diffusers")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("part", "shown", "left_out"),
    [("transformer", "\nmmdit velocity ", "clip_l, clip_g, t5, vae"), ("vae", "\nvae mean ", "t5, mmdit")],
)
def test_what_is_there_is_compared(folder: Path, live, capsys, part: str, shown: str, left_out: str) -> None:
    assert live.main([str(folder / part), *SMALL]) == 0
    out = capsys.readouterr().out
    assert shown in out
    assert re.search(rf"left out, .*: .*{left_out}\n", out)


def test_encoders_without_some_of_the_parts(folder: Path, live, capsys) -> None:
    for name in ("vae", "transformer", "text_encoder_3"):
        shutil.rmtree(folder / name)
    assert live.main([str(folder), *SMALL]) == 0
    out = capsys.readouterr().out
    assert "\nclip_g token ids " in out
    assert "\nclip_g pooled " in out
    assert "\ncontext " not in out
    with pytest.raises(SystemExit, match="holds nothing to compare"):
        live.main([str(folder / "text_encoder")])


@pytest.mark.parametrize("config", [True, False])
def test_the_reference_is_not_filled_by_this_projects_tables(
    folder: Path, live, capsys, monkeypatch: pytest.MonkeyPatch, config: bool
) -> None:
    from weights.keys import Recipe

    if not config:
        (folder / "transformer" / "config.json").unlink()
    whole = Recipe.tensor
    monkeypatch.setattr(Recipe, "tensor", lambda recipe, read: whole(replace(recipe, change=""), read))
    assert live.main([str(folder / "transformer"), *SMALL]) == 1
    assert "first departure: mmdit joint_blocks.3." in capsys.readouterr().out


def test_a_repository_in_the_cache_is_compared_offline(folder: Path, live, tmp_path, monkeypatch) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert live.main(["owner/name", *SMALL]) == 0
