"""Scenes to pictures, many at once and on any device.

A batch of scenes is a table of numbers here, so that a card paints thousands of them without a loop in
Python. Shapes are painted from signed distances, which gives smooth edges at any size of picture.

Every surface bears a faint coloured grain, as photographs do: the latents of flat paint would be the same
whatever noise a picture came from, and nothing of that noise could be read back from it.

Shapes:

    B  scenes           S  pixels of a side           2  shapes of a scene, the second perhaps absent
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .outlines import KINDS
from .scenes import BACKGROUNDS, COLOURS, PAIR_SPREAD, PLACES, POSITION_JITTER, SIZE_JITTER, SIZES, Scene

SIZE = 128  # pixels of a side of the embedded model's pictures
COLUMNS = 9  # of a table: kind, colour, size and place of the first shape, of the second, and the background
ABSENT = -1  # in the columns of a second shape that is not there
GRAIN = 0.05  # deviation of the grain where it is drawn, for pictures in [-1, 1]; 0.04 once it is smooth
GRAIN_SIDE = 32  # points of it along a side: 12 numbers for the 16 channels of a latent pixel


def table_of(scenes: Sequence[Scene]) -> Tensor:
    """Scenes as numbers: (B, 9), int8, the places of the words in their tables."""
    kinds, colours, sizes, places, backgrounds = (
        {word: number for number, word in enumerate(words)}
        for words in (KINDS, COLOURS, SIZES, PLACES, BACKGROUNDS)
    )
    rows = []
    for scene in scenes:
        row = [
            number
            for shape in scene.shapes
            for number in (kinds[shape.kind], colours[shape.colour], sizes[shape.size], places[shape.place])
        ]
        rows.append(row + [ABSENT] * (COLUMNS - 1 - len(row)) + [backgrounds[scene.background]])
    return torch.tensor(rows, dtype=torch.int8)


def draw(
    scenes: Sequence[Scene],
    generator: torch.Generator,
    *,
    size: int = SIZE,
    jitter: float = 1.0,
    grain: float = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Paint scenes, each shape a little off its nominal place and size.

    Args:
        scenes: what to paint, B of them.
        generator: where jitter and grain come from; one on the CPU gives the same picture everywhere.
        size: pixels of a side, S.
        jitter: how far off, as a share of POSITION_JITTER and SIZE_JITTER; 0 is exactly in place.
        grain: how much of it, as a share of GRAIN; 0 is flat paint.
        device: where the painting is done and the result lives.

    Returns:
        Images, (B, 3, S, S) in [-1, 1], float32.
    """
    return paint_at_random(table_of(scenes).to(device), generator, size=size, jitter=jitter, grain=grain)


def paint_at_random(
    table: Tensor, generator: torch.Generator, *, size: int = SIZE, jitter: float = 1.0, grain: float = 1.0
) -> Tensor:
    """Paint a table of scenes with jitter and grain from a generator on any device; otherwise as `draw`."""
    batch, source = len(table), generator.device
    offsets = jitter * (2 * torch.rand(batch, 2, 3, generator=generator, device=source) - 1)
    field = torch.randn(batch, 3, GRAIN_SIDE, GRAIN_SIDE, generator=generator, device=source)
    return paint(table, offsets.to(table.device), grain * GRAIN * field.to(table.device), size=size)


def paint(table: Tensor, offsets: Tensor, grain: Tensor, *, size: int = SIZE) -> Tensor:
    """Paint a table of scenes.

    Args:
        table: (B, 9), as `table_of` gives it.
        offsets: of x, y and radius of each shape, (B, 2, 3), in shares of the largest jitter.
        grain: what is added to the colours at the points of a coarse grid, (B, 3, 32, 32).
        size: pixels of a side, S.

    Returns:
        Images, (B, 3, S, S) in [-1, 1].
    """
    return coloured(table, distances(layout_of(table, offsets), size), grain)


class Layout(NamedTuple):
    """Where the shapes of scenes lie, (B, 2) each; lengths are fractions of the picture's side."""

    kind: Tensor  # the place in KINDS; ABSENT where there is no second shape
    x: Tensor  # of the middle of the shape's box, to the right of the picture's centre
    y: Tensor  # down from it
    radius: Tensor
    angle: Tensor | None = None  # by which it is turned about that middle, in radians, clockwise


def layout_of(table: Tensor, offsets: Tensor) -> Layout:
    """Where a table's words and these offsets, as in `paint`, put its shapes."""
    world = world_on(table.device)
    kind, _, size_word, place = table.long()[:, :8].unflatten(1, (2, 4)).unbind(dim=2)  # (B, 2) each
    spread = torch.where((kind != ABSENT).all(dim=1), PAIR_SPREAD, 1.0)[:, None, None]  # (B, 1, 1)
    x, y = (spread * world.places[place.clamp(min=0)] + POSITION_JITTER * offsets[:, :, :2]).unbind(dim=2)
    return Layout(kind, x, y, world.sizes[size_word.clamp(min=0)] * (1 + SIZE_JITTER * offsets[:, :, 2]))


def distances(layout: Layout, size: int = SIZE) -> Tensor:
    """How far each pixel is from the edge of each shape, in pixels: (B, 2, S, S), negative inside.

    Of a shape that is absent, everything is infinitely far.
    """
    axis = (torch.arange(size, device=layout.x.device) + 0.5) / size - 0.5
    unit = layout.radius.flatten()[:, None, None]
    u = (axis - layout.x.flatten()[:, None])[:, None, :] / unit  # (2B, 1, S)
    v = (axis - layout.y.flatten()[:, None])[:, :, None] / unit  # (2B, S, 1)
    if layout.angle is not None:
        cos, sin = (turn.flatten()[:, None, None] for turn in (layout.angle.cos(), layout.angle.sin()))
        u, v = cos * u + sin * v, cos * v - sin * u  # (2B, S, S) each
    kind = layout.kind.flatten()[:, None, None]
    distance = torch.full((), torch.inf, device=unit.device)
    for number, outline in enumerate(KINDS.values()):
        distance = torch.where(kind == number, outline(u, v) * unit * size, distance)
    return distance.unflatten(0, (-1, 2))


def coloured(table: Tensor, distance: Tensor, grain: Tensor) -> Tensor:
    """Paint what lies within these distances, as `distances` gives them, in the colours of a table.

    Args:
        table: (B, 9); of its words, those of colours count.
        distance: (B, 2, S, S), in pixels.
        grain: as in `paint`.
    """
    table, world = table.long(), world_on(table.device)
    ground = world.backgrounds[table[:, 8]]  # (B, 3)
    # A pixel is covered by what lies within half a pixel of the edge: one step of smoothness.
    cover = (0.5 - distance).clamp(0, 1)  # (B, 2, S, S)
    # Shapes of one scene never overlap, so that adding their differences paints both.
    change = world.colours[table[:, [1, 5]].clamp(min=0)] - ground[:, None]  # (B, 2, 3)
    image = ground[:, :, None, None] + torch.einsum("bnhw,bnc->bchw", cover, change)
    field = F.interpolate(grain, size=tuple(distance.shape[2:]), mode="bicubic", align_corners=False)
    return (image + field).clamp(-1, 1)


class World(NamedTuple):
    """What the numbers of a table stand for."""

    colours: Tensor  # (8, 3) in [-1, 1]
    backgrounds: Tensor  # (11, 3)
    places: Tensor  # (5, 2)
    sizes: Tensor  # (3,)


@cache
def world_on(device: torch.device) -> World:
    """The tables of the world on a device. Kept: bringing numbers to a card makes it wait."""
    tables = (COLOURS, BACKGROUNDS, PLACES, SIZES)
    colours, backgrounds, places, sizes = (
        torch.tensor(list(table.values()), dtype=torch.float32, device=device) for table in tables
    )
    return World(colours / 127.5 - 1, backgrounds / 127.5 - 1, places, sizes)
