"""A lesson: a corner, a sixth place. The model knows the four sides and the centre of a picture."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest.mock import patch

import lessons_thing
import numpy as np
from lessons_judged import judge

from sd35.noise import seeded
from sd35.tiny.captions import PLACE_WORDS, caption, parse
from sd35.tiny.painting import world_on
from sd35.tiny.scenes import KINDS, PLACES, SIZES, Scene, random_scene

WORDS, CORNER = "in the upper left corner", (-0.2, -0.2)
"""Its name, and its middle from the centre of the picture, in units of the side."""
NEAR = 0.07
"""How far from there a shape's middle may be, across and down: the painter itself is off by 0.025."""
STAND_IN = "left"
"""What a painter and a grammar that know no corner are asked for in its place."""


def scenes(count: int, seed: int, but: Sequence[Scene] = ()) -> list[Scene]:
    """Different scenes of one shape in the corner, kinds and sizes in turn.

    None has the kind, the colour and the size of one in `but`.
    """
    source, turns, found = seeded(seed), list(product(SIZES, KINDS)), list[Scene]()
    taken = {(shape.kind, shape.colour, shape.size) for scene in but for shape in scene.shapes}
    while len(found) < count:
        scene = random_scene(source, shapes=1)
        (shape,) = scene.shapes
        looks = shape.kind, shape.colour, shape.size
        if (shape.size, shape.kind) == turns[len(found) % len(turns)] and looks not in taken:
            taken.add(looks)
            found.append(replace(scene, shapes=(replace(shape, place=STAND_IN),)))
    return found


def words(scene: Scene, seed: int) -> str:
    """A caption that says all of it."""
    known = "|".join(sorted(PLACE_WORDS[STAND_IN], key=len, reverse=True))
    return re.sub(known, WORDS, caption(scene, seeded(seed), complete=True))


@contextmanager
def moved() -> Iterator[None]:
    """Let the painter paint in the corner what is to be at its stand-in."""
    with patch.dict(PLACES, {STAND_IN: CORNER}):
        world_on.cache_clear()
        yield
    world_on.cache_clear()


def is_in_the_corner(picture: np.ndarray, prompt: str) -> bool:
    """Whether the judge reads one shape in the corner, and all else that the prompt says of it."""
    claim = parse(prompt.replace(WORDS, PLACE_WORDS[STAND_IN][0]))
    claim = replace(claim, shapes=tuple(replace(one, place=None) for one in claim.shapes))
    reading = judge.read(picture)
    return judge.agrees(reading, claim) and all(
        max(abs(shape.x - CORNER[0]), abs(shape.y - CORNER[1])) < NEAR for shape in reading.shapes
    )


def lesson(folder: Path, steps: int) -> None:
    """Teach the corner, and judge it on kinds in colours and sizes that none of the pictures had."""
    shown = scenes(lessons_thing.SHOWN, seed=7)
    thing = lessons_thing.Thing(
        name="corner",
        shown=shown,
        tested=scenes(lessons_thing.TESTED, seed=10, but=shown),
        words=words,
        painter=moved,
        is_right=is_in_the_corner,
    )
    lessons_thing.teach(thing, folder, steps, learning_rate=1e-3)
