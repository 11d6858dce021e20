"""Whether the judge of the embedded model's pictures can be believed: it must also say no."""

import numpy as np
import torch
import torch.nn.functional as F

from sd35.tiny.captions import parse
from sd35.tiny.painting import draw
from sd35.tiny.scenes import BACKGROUNDS, COLOURS, Scene, Shape, random_scene

WHITE, RED, BLUE = (255, 255, 255), COLOURS["red"], COLOURS["blue"]


def to_bytes(images: torch.Tensor) -> np.ndarray:
    """(B, 3, S, S) in [-1, 1] to (B, S, S, 3) of 0 to 255."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    offsets = torch.arange(-4, 5.0)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    padded = F.pad(images, (4, 4, 4, 4), mode="replicate")
    return F.conv2d(padded, kernel.expand(3, 1, 9, 9), groups=3)


def blank(colour=WHITE, size=128) -> np.ndarray:
    return np.full((size, size, 3), colour, dtype=np.uint8)


def test_judge_reads_what_was_drawn_and_believes_nothing_else(judge, lies, generator):
    scenes = [random_scene(generator) for _ in range(120)]
    assert {scene.background for scene in scenes} == {*BACKGROUNDS}  # so many that all there is occurs
    for scene, image in zip(scenes, to_bytes(draw(scenes, generator)), strict=True):
        reading = judge.read(image)
        assert judge.disagreements(reading, scene) == []
        assert judge.agrees(reading, scene.flipped())
        for lie in lies(scene):
            assert not judge.agrees(reading, lie), (scene, lie)


def test_judge_reads_through_blur_and_noise(judge, generator):
    scenes = [random_scene(generator) for _ in range(100)]
    images = blurred(draw(scenes, generator), 0.7)
    images += 0.02 * torch.randn(images.shape, generator=generator)
    wrong = [
        (scene, reasons)
        for scene, image in zip(scenes, to_bytes(images), strict=True)
        if (reasons := judge.disagreements(judge.read(image), scene))
    ]
    assert not wrong


def test_judge_reads_larger_pictures(judge, generator):
    scenes = [random_scene(generator) for _ in range(20)]
    for scene, image in zip(scenes, to_bytes(draw(scenes, generator, size=256)), strict=True):
        assert judge.disagreements(judge.read(image), scene) == []


def test_reasons_say_what_is_wrong(judge, generator):
    scene = Scene((Shape("star", "red", "large", "left"),), "black")
    reading = judge.read(to_bytes(draw([scene], generator))[0])
    assert judge.disagreements(reading, parse("a small blue star on the right on white")) == [
        "background is black, not white",
        "red star: colour is red, not blue",
        "red star: size is large, not small",
        "red star: place is left, not right",
    ]
    assert judge.disagreements(reading, parse("a star and a ring")) == ["1 shapes (red star), not 2"]
    assert judge.agrees(reading, parse("a red star"))


def test_swapped_shapes_are_no_longer_so_related(judge, generator):
    shapes = (Shape("star", "red", "small", "top"), Shape("ring", "green", "medium", "bottom"))
    reading = judge.read(to_bytes(draw([Scene(shapes, "white", "above")], generator))[0])
    assert judge.agrees(reading, parse("a red star above a green ring"))
    assert judge.agrees(reading, parse("a green ring below a red star"))
    assert not judge.agrees(reading, parse("a green ring above a red star"))
    assert not judge.agrees(reading, parse("a green star above a red ring"))
    assert not judge.agrees(reading, parse("a red star left of a green ring"))


def test_an_empty_picture_holds_no_shape(judge):
    reading = judge.read(blank(COLOURS["cyan"]))
    assert reading == judge.Reading("cyan", ())
    assert not judge.agrees(reading, parse("a red circle"))


def test_noise_is_no_picture(judge):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert not judge.agrees(judge.read(noise), parse("circle"))


def test_a_background_of_no_known_colour_is_unclear(judge):
    assert judge.read(blank((120, 190, 120))).background == "unclear"


def test_touching_shapes_are_told_apart_by_colour(judge):
    image = blank()
    image[45:83, 20:64], image[45:83, 64:108] = RED, BLUE
    image[64:83, 56:64] = BLUE  # a bite out of the red
    found = {(shape.colour, shape.place) for shape in judge.read(image).shapes}
    assert found == {("red", "left"), ("blue", "right")}


def test_touching_shapes_are_told_apart_through_blur(judge):
    image = blank()
    image[45:83, 26:64], image[45:83, 64:102] = RED, BLUE
    image = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    reading = judge.read(to_bytes(blurred(image, 0.8))[0])
    assert judge.agrees(reading, parse("a red square left of a blue square"))


def test_touching_shapes_of_one_colour_are_no_shape(judge):
    image = blank()
    image[45:83, 20:108] = RED
    assert [shape.kind for shape in judge.read(image).shapes] == ["unclear"]


def test_a_malformed_shape_is_unclear(judge, malformed):
    for name, image in malformed.items():
        assert [shape.kind for shape in judge.read(image).shapes] == ["unclear"], name


def test_a_shape_too_many_is_seen_and_dirt_is_not(judge, generator):
    scene = Scene((Shape("ring", "green", "medium", "left"),), "white")
    image = to_bytes(draw([scene], generator))[0]
    image[60:63, 100:103] = BLUE
    assert judge.agrees(judge.read(image), scene)
    image[60:66, 100:106] = BLUE
    assert not judge.agrees(judge.read(image), scene)


def test_a_shape_in_a_corner_has_no_place(judge):
    image = blank()
    image[20:64, 20:64] = RED
    (square,) = judge.read(image).shapes
    assert (square.kind, square.place) == ("square", "unclear")
