"""The ControlNet of outlines: what it learns from, that its run resumes, and what the shipped one does."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import sd35
import weights
from sd35.tiny import controlnet
from sd35.tiny.captions import parse
from sd35.tiny.painting import distances
from sd35.tiny.traced import drawing, free_caption, free_layout, free_scene, is_kept_back
from weights.source import EMBEDDED, TINY

SIDE = 128


@pytest.fixture
def scenes(generator):
    return [free_scene(generator) for _ in range(200)]


def test_captions_leave_open_what_the_outline_tells(scenes, generator) -> None:
    for scene in scenes:
        claim = parse(free_caption(scene, generator))
        assert [one.kind for one in claim.shapes] in [
            [one.kind for one in order.shapes] for order in (scene, scene.flipped())
        ]
        assert claim.relation is None
        assert {(one.size, one.place) for one in claim.shapes} == {(None, None)}


def test_shapes_lie_within_the_picture_and_apart(scenes, generator) -> None:
    scenes = scenes[:60]
    inside = distances(free_layout(scenes, generator), SIDE) < 0
    assert inside.any(dim=(2, 3)).sum() == sum(len(scene.shapes) for scene in scenes)
    border = torch.ones(SIDE, SIDE, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert not (inside & border).any()
    assert not inside.all(dim=1).any()


def test_some_turn_and_some_stand_upright(scenes, generator) -> None:
    angle = free_layout(scenes, generator).angle
    assert angle is not None
    assert 0.4 < float((angle == 0).float().mean()) < 0.6
    assert float(angle.max()) > 0.9 * 2 * math.pi


def test_lines_follow_edges(scenes, generator) -> None:
    layout = free_layout(scenes[:60], generator)
    lines = drawing(layout, generator)
    assert lines.shape == (60, 3, SIDE, SIDE)
    assert lines.min() == -1
    assert lines.max() == 1
    away = distances(layout, SIDE).abs().amin(dim=1)  # to the nearest edge
    drawn = lines[:, 0] > 0
    assert drawn.flatten(1).any(dim=1).all()
    assert float((away[drawn] < 3).float().mean()) > 0.98
    # Of the edge itself little stays without a line: the gaps, and what an unsteady hand missed.
    near = torch.nn.functional.max_pool2d(drawn[:, None].float(), 7, 1, 3)[:, 0] > 0
    assert float(near[away < 0.5].float().mean()) > 0.97


def test_an_eighth_is_kept_back_and_never_drawn(generator) -> None:
    scenes = [free_scene(generator) for _ in range(2000)]
    alone = [is_kept_back(scene) for scene in scenes if len(scene.shapes) == 1]
    assert 0.08 < sum(alone) / len(alone) < 0.18
    for worded in (True, False):
        drawn = [controlnet.draw_scene(generator, is_worded=worded) for _ in range(50)]
        assert not any(map(is_kept_back, drawn))


def test_a_run_that_is_resumed_ends_in_the_same_weights(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(controlnet, "CHUNK", 4)
    training = replace(controlnet.TRAINING, batch_size=2, warmup=0, steps=2)
    whole = controlnet.train_outline(tmp_path / "whole", training, chunks=1)
    controlnet.train_outline(tmp_path / "parts", replace(training, steps=1), chunks=1)
    resumed = controlnet.train_outline(tmp_path / "parts", training, chunks=1, resume=True)
    one, other = load_file(whole), load_file(resumed)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {one[name].dtype for name in one} == {torch.float16, torch.int32}
    assert weights.load_controlnet(whole).config.depth == training.depth


shipped = pytest.mark.skipif(
    not list(EMBEDDED["outline"].glob("*.safetensors")), reason="the ControlNet's weights are not here"
)


@shipped
def test_it_is_small_and_whole() -> None:
    files = [path for path in EMBEDDED["outline"].iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4e6
    report = weights.inspect("outline", values=True)
    assert [(part, one.variant, one.is_complete) for part, one in report.components.items()] == [
        ("controlnet", "outline", True)
    ]
    assert "controlnet" not in weights.inspect("tiny").components
    assert EMBEDDED["tiny"] == TINY


@shipped
def test_its_name_holds_beside_a_folder_of_that_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outline").mkdir()
    picture = tmp_path / "lines.png"
    Image.new("RGB", (SIDE, SIDE)).save(picture)
    assert sd35.Control("outline", picture).recorded.source == "outline"
    assert sd35.Control("./outline", picture).recorded.source == str(tmp_path / "outline")
    assert weights.load_controlnet("outline").config.dim == 192


@shipped
def test_a_shape_goes_where_it_is_drawn() -> None:
    outlines = [
        ("a red circle on a white background", "ellipse", (14, 18, 58, 62)),
        ("a blue square on a white background", "rectangle", (76, 70, 114, 108)),
        ("a green circle on a black background", "ellipse", (70, 12, 118, 60)),
    ]
    prompts, drawings, filled = [], [], []
    for prompt, form, box in outlines:
        lines, area = Image.new("RGB", (SIDE, SIDE)), Image.new("L", (SIDE, SIDE))
        getattr(ImageDraw.Draw(lines), form)(box, outline="white", width=2)
        getattr(ImageDraw.Draw(area), form)(box, fill=255)
        prompts.append(prompt)
        drawings.append(lines)
        filled.append(np.asarray(area) > 0)
    pipe = sd35.load("tiny")
    settings: dict[str, Any] = {"steps": 6, "seed": 3, "batch_size": 3}
    steered = pipe.generate(prompts, control=sd35.Control("outline", drawings), **settings).images
    free = pipe.generate(prompts, **settings).images
    assert min(map(overlap, steered, filled)) > 0.7
    assert max(map(overlap, free, filled)) < 0.4


def overlap(picture: Image.Image, area: np.ndarray) -> float:
    """Intersection over union of what differs from the corner's colour, and an area."""
    pixels = np.asarray(picture).astype(float)
    shape = np.linalg.norm(pixels - pixels[2, 2], axis=-1) > 90
    return float((shape & area).sum() / (shape | area).sum())
