import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sd35.tiny.painting import draw
from sd35.tiny.scenes import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    PLACES,
    RELATIONS,
    SIZES,
    Scene,
    Shape,
    are_distinct,
    is_held_out,
    random_scene,
    training_scene,
)

AREAS = {  # of a radius of 1, worked out by hand
    "circle": math.pi,
    "square": 1.76**2,
    "triangle": 3 * math.sqrt(3) / 4 * 1.2**2,
    "star": 5 * 1.08 * 0.46 * math.sin(math.pi / 5),
    "cross": 2 * 2 * 0.64 - 0.64**2,
    "ring": math.pi * (1 - 0.55**2),
}
RED_STAR = Scene((Shape("star", "red", "large", "left"),), "blue")


def pair(relation: str) -> Scene:
    places = RELATIONS[relation]
    shapes = (Shape("star", "red", "medium", places[0]), Shape("ring", "blue", "medium", places[1]))
    return Scene(shapes, "white", relation)


def test_draw_gives_images_that_a_seed_repeats(generator):
    scenes = [random_scene(generator) for _ in range(8)]
    first, again, other = (draw(scenes, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (8, 3, 128, 128)
    assert first.dtype == torch.float32
    assert first.min() >= -1 - 1e-6
    assert first.max() <= 1 + 1e-6
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_area_and_fills_its_box(kind):
    axis = (torch.arange(1000) + 0.5) / 400 - 1.25
    inside = KINDS[kind](axis[None, None, :], axis[None, :, None])[0] < 0
    assert inside.float().mean() * 2.5**2 == pytest.approx(AREAS[kind], rel=0.005)
    rows, columns = inside.any(dim=1).nonzero(), inside.any(dim=0).nonzero()
    assert rows.min() + rows.max() == pytest.approx(999, abs=2)  # the origin is the middle of the box
    assert columns.min() + columns.max() == pytest.approx(999, abs=2)
    assert 0.85 < (rows.max() - rows.min() + 1) / 800 < 1.05


def test_edges_are_smooth_and_the_rest_is_flat(generator):
    scene = Scene((Shape("circle", "red", "large", "centre"),), "white")
    image = (draw([scene], generator, grain=0)[0] + 1) * 127.5
    named = (COLOURS["red"], BACKGROUNDS["white"])
    red, white = (torch.tensor(colour, dtype=torch.float32)[:, None, None] for colour in named)
    is_red, is_white = ((image - colour).abs().amax(dim=0) < 0.01 for colour in (red, white))
    edge = 2 * math.pi * SIZES["large"] * 128
    assert 0.5 * edge < (~is_red & ~is_white).sum() < 2 * edge


def test_a_smaller_picture_is_the_same_picture(generator):
    scenes = [random_scene(generator) for _ in range(16)]
    large, small = (draw(scenes, torch.Generator().manual_seed(3), size=size) for size in (128, 64))
    assert (F.avg_pool2d(large, 2) - small).abs().mean() < 0.002


def test_jitter_moves_shapes_by_its_share():
    """Without it, every seed paints the same; with some, edges move, by less than with all."""
    scenes = [Scene((Shape("square", "red", "medium", place),), "white") for place in PLACES] * 4

    def moved(jitter: float) -> float:
        one, other = (
            draw(scenes, torch.Generator().manual_seed(seed), jitter=jitter, grain=0) for seed in (0, 1)
        )
        return float((one - other).abs().mean())

    assert moved(0.0) == 0.0
    assert 0 < moved(0.25) < 0.5 * moved(1.0)


def test_random_scenes_reach_everything_and_keep_the_rules(generator):
    scenes = [random_scene(generator) for _ in range(1500)]
    shapes = [shape for scene in scenes for shape in scene.shapes]
    assert {shape.kind for shape in shapes} == set(KINDS)
    assert {shape.colour for shape in shapes} == set(COLOURS)
    assert {shape.size for shape in shapes} == set(SIZES)
    assert {shape.place for shape in shapes} == set(PLACES)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.relation for scene in scenes} == {None, *RELATIONS}
    assert all(are_distinct(shape.colour, scene.background) for scene in scenes for shape in scene.shapes)
    for first, second in (scene.shapes for scene in scenes if scene.relation):
        assert (first.kind, first.colour) != (second.kind, second.colour)


@pytest.mark.parametrize("count", [1, 2])
def test_the_number_of_shapes_can_be_asked_for(generator, count):
    assert all(len(random_scene(generator, shapes=count).shapes) == count for _ in range(50))


def test_three_shapes_are_refused(generator):
    with pytest.raises(ValueError, match="1 or 2 shapes, not 3"):
        random_scene(generator, shapes=3)


@pytest.mark.parametrize("colour", COLOURS)
def test_no_colour_is_drawn_on_itself(colour):
    assert not are_distinct(colour, colour)
    assert are_distinct(colour, "white")
    assert are_distinct(colour, "black")


def test_what_looks_alike_is_not_drawn_on_each_other():
    """The pairs that the embedded model was never shown."""
    near = {
        (colour, background)
        for colour in COLOURS
        for background in BACKGROUNDS
        if colour != background and not are_distinct(colour, background)
    }
    alike = {("red", "orange"), ("orange", "yellow"), ("blue", "purple")}
    assert near == alike | {pair[::-1] for pair in alike} | {("green", "grey"), ("purple", "grey")}


@pytest.mark.parametrize(("relation", "inverse"), [("left of", "right of"), ("above", "below")])
def test_flipping_tells_the_same_picture_from_the_other_side(relation, inverse):
    scene = pair(relation)
    assert scene.flipped().relation == inverse
    assert scene.flipped().shapes == scene.shapes[::-1]
    assert scene.flipped().flipped() == scene
    assert RED_STAR.flipped() == RED_STAR


@pytest.mark.parametrize("count", [1, 2])
def test_held_out_is_one_in_sixteen_from_either_side_on_any_background(generator, count):
    scenes = [random_scene(generator, shapes=count) for _ in range(4000)]
    held_out = [scene for scene in scenes if is_held_out(scene)]
    assert 0.04 < len(held_out) / len(scenes) < 0.085
    assert all(is_held_out(scene.flipped()) for scene in held_out)
    assert all(is_held_out(replace(scene, background="white")) for scene in held_out)


def test_the_split_stays_what_it_was_when_the_model_was_trained():
    names = [(kind, colour) for kind in KINDS for colour in COLOURS]
    held_out = [
        f"{size} {colour} {kind}, {place}"
        for kind, colour in names
        for size in SIZES
        for place in PLACES
        if is_held_out(Scene((Shape(kind, colour, size, place),), "white"))
    ]
    assert len(held_out) == 55
    assert held_out[:3] == [
        "large red circle, centre",
        "medium orange circle, bottom",
        "small yellow circle, bottom",
    ]


def test_training_scenes_are_never_held_out(generator):
    assert not any(is_held_out(training_scene(generator)) for _ in range(1000))
