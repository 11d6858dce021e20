"""The pictures that the embedded model learns from: one or two coloured shapes on a background.

A `Scene` says in words what is to be seen; `painting.py` paints it. Lengths are fractions of the picture's
side, x runs to the right and y down, both from the centre.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from .outlines import KINDS

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (243, 135, 16),
    "yellow": (243, 225, 40),
    "green": (30, 150, 60),
    "cyan": (40, 205, 220),
    "blue": (30, 65, 215),
    "purple": (130, 35, 170),
    "pink": (243, 135, 190),
}
"""The eight colours of a shape, in sRGB, 0 to 255. None is nearer to either end than the grain needs."""

NEUTRALS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 246),
    "black": (10, 10, 10),
    "grey": (128, 128, 128),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = NEUTRALS | COLOURS
"""What a background may be; every second one is neutral."""

SIZES: dict[str, float] = {"small": 0.12, "medium": 0.175, "large": 0.255}
"""Radius of a circle of that size; the other kinds are scaled to look as large."""

PLACES: dict[str, tuple[float, float]] = {
    "left": (-0.2, 0.0),
    "right": (0.2, 0.0),
    "top": (0.0, -0.2),
    "bottom": (0.0, 0.2),
    "centre": (0.0, 0.0),
}
"""Centre of a shape that is alone. Beside another it stands at `PAIR_SPREAD` times that."""

RELATIONS: dict[str, tuple[str, str]] = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
"""What the first shape is to the second, and the places that the two then have."""

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

PAIR_SPREAD = 1.175
PAIR_SIZES = ("small", "medium")  # two large ones do not fit side by side
POSITION_JITTER = 0.025
SIZE_JITTER = 0.04
NEAREST_COLOURS = 122  # Euclidean, of 0 to 255; what it keeps apart is a list in the tests
HELD_OUT_ONE_IN = 16

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Shape:
    """One thing to be seen."""

    kind: str  # of KINDS
    colour: str  # of COLOURS
    size: str  # of SIZES
    place: str  # of PLACES; in a pair, what the relation says


@dataclass(frozen=True)
class Scene:
    """A whole picture in words: a shape alone, or two of which `relation` holds."""

    shapes: tuple[Shape, ...]
    background: str  # of BACKGROUNDS
    relation: str | None = None  # of RELATIONS, from the first shape to the second; None for one

    def flipped(self) -> "Scene":
        """The same picture told from the other shape: A left of B is B right of A."""
        if self.relation is None:
            return self
        return replace(self, shapes=self.shapes[::-1], relation=INVERSE[self.relation])

    def are_twins(self) -> bool:
        """Whether its shapes are two of a kind and colour, side by side: a relation says nothing of them."""
        first, *others = self.shapes
        return [(other.kind, other.colour, other.size) for other in others] == [
            (first.kind, first.colour, first.size)
        ]


def random_scene(generator: torch.Generator, *, shapes: int | None = None) -> Scene:
    """Any scene that can be drawn, held out or not.

    Args:
        generator: where chance comes from.
        shapes: 1 or 2; None takes either, evenly.

    Raises:
        ValueError: `shapes` is neither.
    """
    if shapes not in (None, 1, 2):
        raise ValueError(f"a scene has 1 or 2 shapes, not {shapes}")
    background = choose(list(choose((NEUTRALS, COLOURS), generator)), generator)
    colours = [colour for colour in COLOURS if are_distinct(colour, background)]
    if (shapes or choose((1, 2), generator)) == 1:
        alone = _random_shape(colours, list(SIZES), choose(list(PLACES), generator), generator)
        return Scene((alone,), background)
    relation = choose(list(RELATIONS), generator)
    first, second = (_random_shape(colours, PAIR_SIZES, place, generator) for place in RELATIONS[relation])
    while (first.kind, first.colour) == (second.kind, second.colour):  # a relation of twins says nothing
        second = _random_shape(colours, PAIR_SIZES, second.place, generator)
    return Scene((first, second), background, relation)


def training_scene(generator: torch.Generator, *, shapes: int | None = None) -> Scene:
    """A scene that may be trained on: as `random_scene`, but never one that is held out."""
    while is_held_out(scene := random_scene(generator, shapes=shapes)):
        pass
    return scene


def usual_scene(generator: torch.Generator) -> Scene:
    """What a caption that says little is taken to mean, never one that is held out.

    A shape in the centre, large or at times medium; or two medium ones side by side, in half of the cases
    alike ("two circles"); on white, now and then on grey or black. The colours and kinds are anything.
    """
    background = "white" if _happens(0.85, generator) else choose(("grey", "black"), generator)
    colours = [colour for colour in COLOURS if are_distinct(colour, background)]
    if _happens(0.5, generator):
        size = "large" if _happens(0.75, generator) else "medium"
        scene = Scene((_random_shape(colours, [size], "centre", generator),), background)
    else:
        first, second = (_random_shape(colours, ["medium"], place, generator) for place in ("left", "right"))
        if _happens(0.5, generator):
            second = replace(first, place="right")
        scene = Scene((first, second), background, "left of")
    return usual_scene(generator) if is_held_out(scene) else scene


def is_held_out(scene: Scene) -> bool:
    """Whether training must never see this scene: about one combination in 16, always the same ones.

    What is held out is a combination on every background: of kind, colour, size and place for one
    shape; of both kinds, both colours and the relation for two, from whichever side it is told.
    """
    if scene.relation in ("right of", "below"):
        scene = scene.flipped()
    if scene.relation is None:
        (shape,) = scene.shapes
        words = [shape.kind, shape.colour, shape.size, shape.place]
    else:
        words = [scene.relation] + [word for shape in scene.shapes for word in (shape.kind, shape.colour)]
    # Not `hash`, which Python salts anew in each process.
    digest = hashlib.sha256(", ".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def are_distinct(colour: str, background: str) -> bool:
    """Whether a shape of `colour` stands out well on `background`."""
    return math.dist(COLOURS[colour], BACKGROUNDS[background]) >= NEAREST_COLOURS


def choose(options: Sequence[Choice], generator: torch.Generator) -> Choice:
    """One of `options`, all being equally likely."""
    return options[int(torch.randint(len(options), (), generator=generator))]


def _happens(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < probability)


def _random_shape(
    colours: Sequence[str], sizes: Sequence[str], place: str, generator: torch.Generator
) -> Shape:
    kind, colour, size = (choose(options, generator) for options in (list(KINDS), colours, sizes))
    return Shape(kind, colour, size, place)
