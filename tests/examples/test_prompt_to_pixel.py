"""The example that shows the whole draws what the pipeline draws, with nothing but the parts."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from weights.source import TINY

EXAMPLE = Path(__file__).parents[2] / "examples" / "prompt_to_pixel.py"
PROMPT = "a red circle on a white background"


@pytest.mark.skipif(not list(TINY.glob("*.safetensors")), reason="the embedded model's weights are not here")
def test_it_draws_the_picture_of_the_pipeline_to_the_last_bit(script, tmp_path, capsys) -> None:
    import sd35

    module = script(f"examples/{EXAMPLE.name}")
    result = sd35.load("tiny").generate(PROMPT, seed=3, steps=2, guidance_scale=2.5)
    assert torch.equal(module.draw(PROMPT, "tiny", seed=3, steps=2, guidance_scale=2.5), result.image)
    path = tmp_path / "circle.png"
    module.main([PROMPT, "--seed", "3", "--steps", "2", "--cfg", "2.5", "-o", str(path)])
    assert capsys.readouterr().out == f"{path}\n"
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(result.images[0]))


def test_it_is_made_of_the_parts_alone() -> None:
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert {name.split(".")[0] for name in imported} == {
        *("argparse", "collections", "torch"),
        *("flow", "vae", "weights"),
    }
