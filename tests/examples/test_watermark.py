"""The example counts the marks that are found."""

import importlib.util
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest

from weights.source import TINY


@pytest.fixture(scope="module")
def watermark() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "watermark.py"
    spec = importlib.util.spec_from_file_location("watermark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not list(TINY.glob("*.safetensors")), reason="the embedded model's weights are not here")
def test_it_counts_pictures(watermark, capsys) -> None:
    watermark.main(["--model", "tiny", "--pictures", "2", "--steps", "2", "--batch-size", "2"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert {tuple(row[:3]) for row in rows} == set(
        product(
            ("tree rings", "Gaussian shading"),
            ("latents", "picture"),
            ("naive", "exact", "naive, without the prompt"),
        )
    )
    assert all(cell in ("0 of 2", "1 of 2", "2 of 2") for row in rows for cell in row[3:])
