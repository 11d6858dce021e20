"""The benchmark of graphics cards, with small models on the CPU: its parts run, and it gives up in order."""

import importlib
import json
import time
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PARTS = (
    "ceilings",
    "medium",
    "generation",
    "verify",
    "drawing",
    "vae",
    "memory",
    "shapes",
    "attentions",
    "fp8",
    "text",
    "tiny",
    "training",
)


@pytest.fixture
def gpu(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("gpu")
    monkeypatch.setattr(module, "BEGIN", time.monotonic())
    return module


def run(gpu: ModuleType, folder: Path, *parts: str, minutes: float = 5) -> tuple[int, list[dict]]:
    options = ["--small", "--device", "cpu", "--minutes", str(minutes), "-o", str(folder), "--only", *parts]
    status = gpu.main(options)
    return status, json.loads((folder / "gpu.json").read_text())["rows"]


def test_every_part_that_needs_no_card_runs(gpu, tmp_path, capsys) -> None:
    status, rows = run(gpu, tmp_path, *PARTS)
    said = "\n".join(f"{row['row']}: {row['remark']}" for row in rows)
    assert status == 0, said
    assert "FAILED" not in said
    assert "NOT" not in said
    assert "DIFFERS" not in said
    assert "status 0" in said
    assert "noise found to the last bit" in said
    timed = [row for row in rows if "median" in row]
    assert len(timed) >= 12
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in timed)
    step = next(row for row in rows if row["row"] == "medium 64 px, guided step, eager")
    assert step["of_floor"] > 0
    trained = [row for row in rows if "said_gb" in row]
    assert len(trained) == 6
    assert all(row["tflops"] > 0 and "nan" not in row["remark"] for row in trained)
    assert (tmp_path / "gpu.txt").read_text() in capsys.readouterr().out + "\n"


def test_what_fails_is_told_in_a_line_and_the_rest_goes_on(gpu, tmp_path, monkeypatch) -> None:
    def fail(bench) -> None:
        raise RuntimeError("no such kernel\nand more")

    sections = [gpu.Section("broken", fail, 0), *gpu.SECTIONS[:1]]
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    status, rows = run(gpu, tmp_path, "broken", "ceilings")
    assert status == 1
    assert rows[0]["remark"] == "FAILED: RuntimeError: no such kernel"
    assert "copy on the device" in [row["row"] for row in rows]
    assert "and more" in (tmp_path / "errors.txt").read_text()


def test_what_the_time_does_not_allow_is_named(gpu, tmp_path) -> None:
    status, rows = run(gpu, tmp_path, "large", "vae", minutes=0.01)
    assert status == 0
    assert [row["row"] for row in rows] == ["vae", "large"]
    assert all("left out: 1 s remain" in row["remark"] for row in rows)
