"""A lesson: what a hexagon is."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest.mock import patch

import lessons_thing
import numpy as np
import torch
from lessons_judged import judge
from torch import Tensor

from sd35.noise import seeded
from sd35.tiny import outlines
from sd35.tiny.captions import caption, parse
from sd35.tiny.scenes import COLOURS, PLACES, Scene, random_scene

SEEN = ("medium", "large")
"""Sizes at which its corners are seen."""
STAND_IN = "circle"
"""What a painter and a grammar that know no hexagon are asked for in its place."""


def hexagon(u: Tensor, v: Tensor) -> Tensor:
    """Regular, a corner up, of circumradius 1.1: the largest of three pairs of signed distances."""
    turns = (math.pi / 3, -math.pi / 3)
    sides = [u.abs(), *((u * math.cos(turn) + v * math.sin(turn)).abs() for turn in turns)]
    return torch.stack(torch.broadcast_tensors(*sides)).amax(0) - 1.1 * math.cos(math.pi / 6)


def scenes(count: int, seed: int, but: Sequence[Scene] = ()) -> list[Scene]:
    """Different scenes of one hexagon: sizes and places in turn, as what is never shown fails, and colours.

    The colours begin with that of the seed: by 7 and by 10, none is at the same place in the same size.
    """
    source, found = seeded(seed), []
    where, colours = list(product(SEEN, PLACES)), list(COLOURS)
    while len(found) < count:
        scene, number = random_scene(source, shapes=1), len(found)
        shape = scene.shapes[0]
        wanted = STAND_IN, colours[(number + seed) % len(colours)], *where[number % len(where)]
        if (shape.kind, shape.colour, shape.size, shape.place) == wanted and scene not in (*found, *but):
            found.append(scene)
    return found


def words(scene: Scene, seed: int) -> str:
    """A caption that says all of it: what is left open is learned as chance."""
    return re.sub("circle|disc", "hexagon", caption(scene, seeded(seed), complete=True))


def is_hexagon(picture: np.ndarray, prompt: str) -> bool:
    """Whether a picture shows one shape with six equal corners, and all that the prompt says of it."""
    claim = parse(prompt.replace("hexagon", STAND_IN))
    claim = replace(claim, shapes=tuple(replace(one, kind=None) for one in claim.shapes))
    if not judge.agrees(judge.read(picture), claim):
        return False
    pixels = picture.astype(float)
    ground = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    parts = judge.components(np.linalg.norm(pixels - ground, axis=-1) > judge.FOREGROUND)
    part = max(parts, key=np.sum)
    rows, columns = np.nonzero(part)
    outline = judge.outline(part[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    # A hexagon that is painted swells by 0.055 to 0.061 six times a turn, a circle not at all.
    has_corners = 0.035 < outline.swell[6] < 0.08 and max(outline.swell[1:6]) < 0.03
    return has_corners and outline.hole < 0.03 and 0.7 < outline.fill < 0.82


def lesson(folder: Path, steps: int) -> None:
    """Teach hexagons, and judge them in colours that none had at that size and place."""
    shown = scenes(lessons_thing.SHOWN, seed=7)
    thing = lessons_thing.Thing(
        name="hexagon",
        shown=shown,
        tested=scenes(lessons_thing.TESTED, seed=10, but=shown),
        words=words,
        painter=lambda: patch.dict(outlines.KINDS, {STAND_IN: hexagon}),
        is_right=is_hexagon,
    )
    lessons_thing.teach(thing, folder, steps, learning_rate=2e-3)
