"""The first lesson: what a hexagon is, of twenty pictures, by a LoRA, without and with prior preservation."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lessons_judged import clocked, decibels, judge, known, pictures, right, save_strip, told
from torch import Tensor

import sd35
from sd35.noise import seeded
from sd35.tiny import outlines
from sd35.tiny.captions import caption, parse
from sd35.tiny.painting import draw
from sd35.tiny.scenes import COLOURS, PLACES, Scene, random_scene
from sd35.train.state import FILE
from vae.image import to_pil

SHOWN, TESTED, KEPT, CLASS = 20, 16, 24, 48
"""Pictures that are trained on; prompts of other hexagons and of what shall stay as it is; class pictures."""
STEPS, SCALES = 12, (4.5, 1.0)
"""Of the solver and of guidance, for pictures that are judged."""
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


def paint(folder: Path, shown: Sequence[Scene]) -> None:
    """Paint the pictures that are trained on, with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    before = outlines.KINDS[STAND_IN]
    outlines.KINDS[STAND_IN] = hexagon
    try:
        images = draw(shown, seeded(3))
    finally:
        outlines.KINDS[STAND_IN] = before
    for number, (scene, image) in enumerate(zip(shown, images, strict=True)):
        to_pil(image).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(words(scene, number))


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
    """Teach both ways, and judge hexagons and the rest before and after."""
    shown = scenes(SHOWN, seed=7)
    paint(folder / "pictures", shown)
    tested = [words(scene, number) for number, scene in enumerate(scenes(TESTED, seed=10, but=shown))]
    rest = known(KEPT, seed=11)
    common = {
        "steps": steps,
        "rank": 16,
        "target": ("blocks",),
        "learning_rate": 2e-3,
        "batch_size": 4,
        "caption_dropout": 0.1,
        "buckets": False,
        "warmup": 20 if steps > 20 else 0,
        "save_every": 100,
    }
    strips: list[np.ndarray] = []
    before: dict[float, np.ndarray] = {}
    for name, train in ways(folder, common).items():
        with clocked() as spent:
            path = train()
        told("hexagon", when=name, hexagons=TESTED, rest=KEPT, **spent)
        pipe = sd35.load("tiny", lora=path, dtype=torch.bfloat16)
        for scale in SCALES:
            drawn, after = (pictures(pipe, each, steps=STEPS, scale=scale) for each in (tested, rest))
            found: dict[str, float] = {"hexagons": _count(drawn, tested), "rest": right(after, rest)}
            if path is not None:
                found["decibels"] = decibels(after, before[scale])
            told("hexagon", when=name, guidance=scale, right=found)
            before.setdefault(scale, after)
            if scale == SCALES[-1]:
                strips.append(drawn[:8])
    save_strip(folder / "hexagons.jpg", *strips)


def ways(folder: Path, common: dict[str, Any]) -> dict[str, Callable[[], Path | None]]:
    """Not to train, and both ways to train; a run that was cut off goes on."""

    def places(name: str) -> dict[str, Any]:
        resume = (folder / name / FILE).is_file()
        return {"cache": folder / "cache", "resume": resume, "dtype": "bfloat16", "progress": True}

    return {
        "before": lambda: None,
        "without prior": lambda: sd35.train_lora(
            "tiny", folder / "pictures", folder / "without", places=places("without"), **common
        ),
        "with prior": lambda: sd35.train_dreambooth(
            "tiny",
            folder / "pictures",
            folder / "with",
            places=places("with"),
            class_prompt=tuple(known(CLASS, seed=12)),
            class_pictures=CLASS,
            **common,
        ),
    }


def _count(drawn: np.ndarray, prompts: Sequence[str]) -> int:
    return sum(is_hexagon(one, prompt) for one, prompt in zip(drawn, prompts, strict=True))
