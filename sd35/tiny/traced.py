"""Shapes that lie anywhere, and drawings of their outlines: what the embedded model's ControlNet learns from.

The captions of such a scene leave place, size and turn open, so that only the outline can tell them. Lengths
are fractions of the picture's side, and of lines pixels.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import caption, parse
from .painting import SIZE, Layout, distances, table_of
from .scenes import Scene, Shape, training_scene

RADII = {1: (0.09, 0.3), 2: (0.09, 0.19)}
"""From the smallest to the largest of a shape that is alone, and of each of two."""
REACH = 1.38  # radii from the middle of a shape's box to its farthest corner, a triangle's
MARGIN = 0.02  # between a shape and the border, and between two
UPRIGHT_SHARE = 0.5
KEPT_BACK_ONE_IN = 8

WIDTHS = (0.7, 2.5)  # of a line
INWARD = (-0.3, 1.0)  # where its middle runs; Canny's edges lie a pixel on either side of the true one
UNSTEADY = 0.8  # pixels, at most: the deviation of a hand, in half of the drawings
HAND_SIDE = 8  # points along a side of what that follows
GAPS = 5  # at most, in a third of the drawings, of up to GAP pixels a side; most fall beside the line
GAP = 8


def free_scene(generator: torch.Generator) -> Scene:
    """One or two shapes, each in the size and the place that captions need not tell, on any background.

    Raises:
        ValueError: never of itself; see `training_scene`.
    """
    scene = training_scene(generator)
    if len(scene.shapes) == 1:
        return replace(scene, shapes=(_plain(scene.shapes[0], "large", "centre"),))
    pair = zip(scene.shapes, ("left", "right"), strict=True)
    return Scene(tuple(_plain(one, "medium", place) for one, place in pair), scene.background, "left of")


def free_caption(scene: Scene, generator: torch.Generator) -> str:
    """What a free scene is called, without a word of sizes, places and relations."""
    while True:
        text = caption(scene, generator, brief=bool(torch.rand((), generator=generator) < 0.5))
        claim = parse(text)
        if claim.relation is None and all(one.size is None and one.place is None for one in claim.shapes):
            return text


def is_kept_back(scene: Scene) -> bool:
    """Whether the ControlNet never sees this scene: a kind, colour and background in 8, always the same."""
    words = (f"{one.kind}, {one.colour}, {scene.background}" for one in scene.shapes)
    hashes = (hashlib.sha256(word.encode()).digest() for word in words)  # and not `hash`, which is salted
    return any(int.from_bytes(one[:8], "big") % KEPT_BACK_ONE_IN == 0 for one in hashes)


def free_layout(scenes: Sequence[Scene], generator: torch.Generator) -> Layout:
    """Places, sizes and turns for scenes, whatever their words say: within the picture, and apart.

    Args:
        scenes: B of them.
        generator: on the CPU; half of the shapes stand upright.
    """
    kinds = table_of(scenes)[:, [0, 4]].long()
    rows = torch.tensor([_circles(len(scene.shapes), generator) for scene in scenes])  # (B, 2, 3)
    turned = torch.rand(kinds.shape, generator=generator) >= UPRIGHT_SHARE
    angle = 2 * math.pi * torch.rand(kinds.shape, generator=generator) * turned
    x, y, radius = rows.unbind(dim=2)
    return Layout(kinds, x, y, radius, angle)


def chosen(which: Tensor, upright: Layout, turned: Layout) -> Layout:
    """Rows of an upright layout where `which`, (B, 1), is true, and of one that is turned elsewhere."""
    assert turned.angle is not None
    kind, x, y, radius = (torch.where(which, a, b) for a, b in zip(upright[:4], turned[:4], strict=True))
    return Layout(kind, x, y, radius, turned.angle.masked_fill(which, 0))


def drawing(layout: Layout, generator: torch.Generator) -> Tensor:
    """Outlines as a hand draws them, or as Canny's method finds them: white lines on black.

    Args:
        layout: of B scenes.
        generator: on the CPU, for width, place and steadiness of the lines, and for gaps in them.

    Returns:
        Images, (B, 3, SIZE, SIZE), -1 where nothing is drawn and 1 on a line.
    """
    batch = len(layout.kind)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator)

    width, inward = uniform(*WIDTHS), uniform(*INWARD)
    unsteady = (uniform(-1, 1).clamp(min=0) * UNSTEADY) * torch.randn(
        batch, 1, HAND_SIDE, HAND_SIDE, generator=generator
    )
    hand = F.interpolate(unsteady, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    away = (distances(layout, SIZE) + hand + inward).abs()  # (B, 2, SIZE, SIZE)
    line = (0.5 + width / 2 - away).clamp(0, 1).amax(dim=1, keepdim=True)
    line = torch.where(uniform(0, 1) < 0.5, (line > 0.5).float(), line)
    for row in (uniform(0, 3) < 1).flatten().nonzero().flatten().tolist():
        for _ in range(int(torch.randint(1, GAPS + 1, (), generator=generator))):
            top, left = torch.randint(SIZE, (2,), generator=generator).tolist()
            high, wide = torch.randint(2, GAP + 1, (2,), generator=generator).tolist()
            line[row, :, top : top + high, left : left + wide] = 0
    return (2 * line - 1).expand(-1, 3, -1, -1)


def _plain(shape: Shape, size: str, place: str) -> Shape:
    return replace(shape, size=size, place=place)


def _circles(count: int, generator: torch.Generator) -> list[tuple[float, float, float]]:
    """x, y and radius of as many shapes, and zeros for one that is absent, so that nothing meets."""

    def one() -> tuple[float, float, float]:
        low, high = RADII[count]
        x, y, radius = torch.rand(3, generator=generator).tolist()
        radius = low + (high - low) * radius
        room = 0.5 - MARGIN - REACH * radius
        return room * (2 * x - 1), room * (2 * y - 1), radius

    if count == 1:
        return [one(), (0.0, 0.0, 1.0)]
    while True:
        first, second = one(), one()
        if math.dist(first[:2], second[:2]) > REACH * (first[2] + second[2]) + MARGIN:
            return [first, second]
