"""What lessons of a new thing share: twenty pictures, a LoRA, and what is judged before and after."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lessons_judged import OWN, clocked, decibels, known, pictures, right, save_strip, told

import sd35
from sd35.noise import seeded
from sd35.tiny.painting import draw
from sd35.tiny.scenes import Scene
from sd35.train.state import FILE
from vae.image import to_pil, to_uint8

SHOWN, TESTED, KEPT, CLASS = 20, 16, 24, 144
"""Pictures that are trained on; prompts of the thing and of what shall stay as it is; class pictures."""
WORDINGS = 16
"""Captions of each picture, every one beside a copy, so that no wording is learned with the picture."""
DRAWN: dict[str, dict[str, Any]] = {
    "none": {"steps": 12, "scale": 1.0},
    "everywhere": {"steps": 12, "scale": 4.5},
    "own": {"steps": 28, **OWN},
}
"""How judged pictures are guided; "own" is how the embedded model draws where nothing is said."""


@dataclass(frozen=True)
class Thing:
    """Something that the model has no word for."""

    name: str
    shown: Sequence[Scene]
    """Scenes that are trained on, of what the painter and the grammar know in its place."""
    tested: Sequence[Scene]
    words: Callable[[Scene, int], str]
    """Caption of a scene, its wording by a seed."""
    painter: Callable[[], AbstractContextManager[object]]
    """Where the painter paints the thing, inside a block."""
    is_right: Callable[[np.ndarray, str], bool]
    """Whether a picture shows the thing, and all that a caption says of it."""


def teach(thing: Thing, folder: Path, steps: int, **settings: Any) -> None:
    """Teach without and with prior preservation, and judge the thing and the rest before and after.

    The thing by captions that were trained on, with other noise, and by those that were not.

    Args:
        thing: what is taught.
        folder: of pictures and runs; a run that was cut off goes on.
        steps: of the optimizer.
        settings: of the training, beside those that the lessons share.
    """
    paint(thing, folder / "pictures")
    told(thing.name, when="painted", right=given_back(thing), of=TESTED)
    shown, tested = (
        [thing.words(scene, number) for number, scene in enumerate(scenes)]
        for scenes in (thing.shown, thing.tested)
    )
    rest = known(KEPT, seed=11)
    strips: list[np.ndarray] = []
    before: dict[str, np.ndarray] = {}
    for when, train in ways(folder, steps, settings).items():
        with clocked() as spent:
            path = train()
        told(thing.name, when=when, shown=SHOWN, things=TESTED, rest=KEPT, **spent)
        pipe = sd35.load("tiny", lora=path, dtype=torch.bfloat16)
        drawn = np.empty(0)
        for guidance, numbers in DRAWN.items():
            again, drawn, after = (pictures(pipe, each, **numbers) for each in (shown, tested, rest))
            found: dict[str, float] = {
                "shown": sum(map(thing.is_right, again, shown)),
                "things": sum(map(thing.is_right, drawn, tested)),
                "rest": right(after, rest),
            }
            if path is not None:
                found["decibels"] = decibels(after, before[guidance])
            told(thing.name, when=when, guidance=guidance, right=found)
            before.setdefault(guidance, after)
        strips.append(drawn[:8])
    save_strip(folder / "strip.jpg", *strips)


def paint(thing: Thing, folder: Path) -> None:
    """Paint the pictures that are trained on, with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    with thing.painter():
        images = draw(thing.shown, seeded(3))
    for number, (scene, image) in enumerate(zip(thing.shown, images, strict=True)):
        for wording in range(WORDINGS):
            to_pil(image).save(folder / f"{number:02}-{wording:02}.png")
            caption = thing.words(scene, number + len(images) * wording)
            (folder / f"{number:02}-{wording:02}.txt").write_text(caption)


def given_back(thing: Thing) -> int:
    """In how many painted pictures the thing is right once the autoencoder has encoded and decoded them."""
    with thing.painter():
        images = draw(thing.tested, seeded(4))
    pipe = sd35.load("tiny", text=False)
    with torch.inference_mode():
        back = to_uint8(pipe.decode(pipe.encode(images))).movedim(1, 3).numpy()
    prompts = [thing.words(scene, number) for number, scene in enumerate(thing.tested)]
    return sum(map(thing.is_right, back, prompts))


def ways(folder: Path, steps: int, settings: dict[str, Any]) -> dict[str, Callable[[], Path | None]]:
    """Not to train, and both ways to train; a run that was cut off goes on."""
    common: dict[str, Any] = {
        "steps": steps,
        "rank": 16,
        "target": ("blocks",),
        "batch_size": 4,
        "caption_dropout": 0.0,
        "buckets": False,
        "warmup": 20 if steps > 20 else 0,
        "save_every": 100,
        **settings,
    }

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
