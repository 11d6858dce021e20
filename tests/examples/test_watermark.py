"""The example counts pictures with marks, found where they are and where they are not."""

from itertools import product
from types import ModuleType

import pytest

from weights.source import TINY


@pytest.fixture(scope="module")
def watermark(script) -> ModuleType:
    return script("examples/watermark.py")


@pytest.mark.skipif(not list(TINY.glob("*.safetensors")), reason="the embedded model's weights are not here")
def test_it_counts_pictures(watermark, capsys) -> None:
    watermark.main(["--model", "tiny", "--pictures", "1", "--steps", "2", "--find-steps", "2"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert {tuple(row[:2]) for row in rows} == set(
        product(("tree rings", "gaussian shading"), ("PNG, 8 bits", "JPEG, quality 90", "JPEG, quality 75"))
    )
    assert all(cell in ("0 of 1", "1 of 1") for row in rows for cell in row[2:])
