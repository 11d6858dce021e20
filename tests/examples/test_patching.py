"""Patching both paths of the text leaves nothing of the second prompt."""

import pytest
from PIL import Image

from weights.source import TINY


@pytest.mark.skipif(not list(TINY.glob("*.safetensors")), reason="the embedded model's weights are not here")
def test_both_paths_together_draw_the_first_picture_again(script, tmp_path, capsys) -> None:
    module = script("examples/patching.py")
    module.main(["--steps", "2", "-o", str(tmp_path / "row.png")])

    lines = capsys.readouterr().out.splitlines()
    distance = {name: float(value) for value, name in (line.split("  ", 1) for line in lines[:-1])}
    assert distance["both patched"] == 0
    assert distance["tokens patched"] > 0
    assert distance["pooled vector patched"] > 0
    assert Image.open(tmp_path / "row.png").size == (872, 224)
