"""Whether the second judge of the embedded model's pictures can be believed: it must also say no."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from sd35.tiny.painting import draw
from sd35.tiny.scenes import COLOURS, KINDS, random_scene

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def second(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("second_judge")


def test_it_reads_what_was_drawn_and_believes_nothing_else(second, lies):
    generator = torch.Generator().manual_seed(0)
    scenes = [random_scene(generator) for _ in range(20)]
    assert {shape.kind for scene in scenes for shape in scene.shapes} == {*KINDS}
    images = ((draw(scenes, generator) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    for scene, image in zip(scenes, images.permute(0, 2, 3, 1).numpy(), strict=True):
        seen = second.see(image)
        assert second.faults_of_seen(*seen, scene) == []
        for lie in lies(scene):
            assert second.faults_of_seen(*seen, lie), (scene, lie)


def test_a_picture_is_held_against_what_was_wanted(second, lies):
    scene = random_scene(generator := torch.Generator().manual_seed(1))
    (image,) = ((draw([scene], generator) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    image = image.movedim(0, -1).numpy()
    assert second.faults(image, scene) == []
    assert second.faults(image, next(lies(scene)))


def test_malformed_shapes_are_unclear(second, malformed):
    for name, image in malformed.items():
        assert {shape.kind for shape in second.see(image)[1]} == {"unclear"}, name


def test_what_lies_elsewhere_is_a_shape_too_many(second, malformed):
    image = malformed["almost a circle"].copy()
    image[4:14, 4:14] = COLOURS["blue"]
    assert len(second.see(image)[1]) == 2


def test_an_empty_picture_holds_no_shape(second):
    assert second.see(np.full((128, 128, 3), COLOURS["cyan"], dtype=np.uint8)) == ("cyan", [])
