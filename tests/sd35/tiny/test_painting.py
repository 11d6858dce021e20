"""Painting by tables: the grain, and what a table says."""

import pytest
import torch

from sd35.noise import seeded
from sd35.tiny.painting import ABSENT, GRAIN, draw, paint, table_of
from sd35.tiny.scenes import BACKGROUNDS, COLOURS, Scene, Shape, random_scene

PAIR = Scene(
    (Shape("star", "red", "small", "top"), Shape("ring", "blue", "medium", "bottom")), "white", "above"
)
ALONE = Scene((Shape("cross", "pink", "large", "centre"),), "grey")


def test_a_table_tells_scenes_apart() -> None:
    scenes = list(dict.fromkeys(random_scene(seeded(0)) for _ in range(1)))
    generator = seeded(0)
    scenes = list(dict.fromkeys(random_scene(generator) for _ in range(500)))
    rows = table_of(scenes)
    assert rows.dtype == torch.int8
    # Two shapes look alike whichever comes first; their table does not.
    assert len({tuple(row) for row in rows.tolist()}) == len(scenes)
    assert table_of([ALONE])[0, 4:8].tolist() == [ABSENT] * 4


def test_a_batch_is_its_scenes_alone() -> None:
    table = table_of([PAIR, ALONE, PAIR.flipped()])
    offsets, grain = torch.zeros(3, 2, 3), torch.zeros(3, 3, 32, 32)
    images = paint(table, offsets, grain)
    for row, image in enumerate(images):
        alone = paint(table[row : row + 1], offsets[:1], grain[:1])[0]
        assert torch.allclose(image, alone, atol=1e-6)
    assert torch.allclose(images[0], images[2], atol=1e-6)
    assert torch.allclose(images[0], draw([PAIR], seeded(0), jitter=0, grain=0)[0], atol=1e-6)


def test_colours_are_what_they_are_called() -> None:
    image = (draw([ALONE], seeded(0), jitter=0, grain=0)[0] + 1) * 127.5
    assert image[:, 64, 64].tolist() == pytest.approx(COLOURS["pink"], abs=1e-3)
    assert image[:, 2, 2].tolist() == pytest.approx(BACKGROUNDS["grey"], abs=1e-3)


@pytest.mark.parametrize("background", ["white", "black", "blue"])
def test_grain_is_faint_and_smooth_and_fits_every_colour(background: str) -> None:
    scene = Scene((Shape("circle", "yellow", "small", "left"),), background)
    generator = seeded(0)
    flat = draw([scene] * 16, generator, jitter=0, grain=0)
    grain = draw([scene] * 16, generator, jitter=0) - flat
    assert grain.std() == pytest.approx(0.8 * GRAIN, rel=0.15)
    assert grain.mean().abs() < 0.05 * GRAIN + 0.005
    neighbours = (grain[..., 1:] * grain[..., :-1]).mean() / grain.square().mean()
    assert neighbours > 0.8
    apart = (grain[..., 16:] * grain[..., :-16]).mean() / grain.square().mean()
    assert apart.abs() < 0.05
