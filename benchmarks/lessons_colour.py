"""A lesson: maroon, a ninth colour.

It is one that the autoencoder gives back as it is. Most that it was not trained on come back as one it was:
brown as a dark red or a green.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import lessons_thing
import numpy as np
from lessons_judged import judge

from sd35.noise import seeded
from sd35.tiny.captions import caption, parse
from sd35.tiny.painting import world_on
from sd35.tiny.scenes import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    NEAREST_COLOURS,
    PLACES,
    SIZES,
    Scene,
    Shape,
    choose,
)

NAME, MAROON = "maroon", (110, 10, 50)
"""In sRGB, 0 to 255: 107 from the nearest of the colours that the judge names; those are 90 apart or more."""
STAND_IN = "red"
"""What a painter and a grammar that know no maroon are asked for in its place; no background is red here."""


def scenes(numbers: range, seed: int, but: Sequence[Scene] = ()) -> list[Scene]:
    """Scenes of one maroon shape, kinds and places in turn: 30 numbers have all pairs of these, each once.

    None has the kind, the size and the place of one in `but`.
    """
    source, kinds, places = seeded(seed), list(KINDS), list(PLACES)
    grounds = [name for name, one in BACKGROUNDS.items() if math.dist(MAROON, one) >= NEAREST_COLOURS]
    taken = {(shape.kind, shape.size, shape.place) for scene in but for shape in scene.shapes}
    found = []
    for number in numbers:
        kind, place = kinds[number % len(kinds)], places[number % len(places)]
        size = choose([size for size in SIZES if (kind, size, place) not in taken], source)
        found.append(Scene((Shape(kind, STAND_IN, size, place),), choose(grounds, source)))
    return found


def words(scene: Scene, seed: int) -> str:
    """A caption that says all of it."""
    return re.sub(rf"\b{STAND_IN}\b", NAME, caption(scene, seeded(seed), complete=True))


@contextmanager
def recoloured() -> Iterator[None]:
    """Let the painter paint in maroon what is to be in its stand-in."""
    with patch.dict(COLOURS, {STAND_IN: MAROON}):
        world_on.cache_clear()
        yield
    world_on.cache_clear()


def is_maroon(picture: np.ndarray, prompt: str) -> bool:
    """Whether the judge, who must know maroon, reads one maroon shape and all that the prompt says of it."""
    claim = parse(re.sub(rf"\b{NAME}\b", STAND_IN, prompt))
    claim = replace(claim, shapes=tuple(replace(one, colour=NAME) for one in claim.shapes))
    return judge.agrees(judge.read(picture), claim)


def lesson(folder: Path, steps: int) -> None:
    """Teach maroon, and judge it on kinds in sizes and places that none of the pictures had."""
    count = lessons_thing.SHOWN
    shown = scenes(range(count), seed=7)
    thing = lessons_thing.Thing(
        name="colour",
        shown=shown,
        tested=scenes(range(count, count + lessons_thing.TESTED), seed=10, but=shown),
        words=words,
        painter=recoloured,
        is_right=is_maroon,
    )
    with patch.dict(judge.SHAPE_COLOURS, {NAME: MAROON}):
        lessons_thing.teach(thing, folder, steps, learning_rate=2e-3)
