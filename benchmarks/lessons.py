"""Teach the embedded model by training, and judge what it learned, before and after.

    python benchmarks/lessons.py hexagon --output runs/hexagon      # a new thing from 20 pictures, by a LoRA
    python benchmarks/lessons.py reflow --output runs/reflow        # fewer steps to the same end

Prints one line of JSON a result. Each takes some ten minutes of two processor cores; `--steps` makes it
shorter. Pictures are read back by tests/judge.py, which shares no code with what draws or trains; hexagons by
the swelling of their outline, six to a turn.
"""

import argparse
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, when it is not installed

import numpy as np
import torch
from torch import Tensor

import sd35
from sd35.noise import seeded
from sd35.tiny import outlines
from sd35.tiny.captions import caption, parse
from sd35.tiny.painting import draw
from sd35.tiny.scenes import COLOURS, random_scene
from vae.image import to_pil, to_uint8

ROOT = Path(__file__).resolve().parents[1]


def beside(name: str) -> ModuleType:
    """A module of tests/ by its path."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


judge = beside("judge")
FEW = 12
"""Steps of the solver for a picture that is only judged."""


def told(**result: Any) -> None:
    """Print a result."""
    print(json.dumps(result), flush=True)


def pictures(pipe: sd35.Pipeline, prompts: Sequence[str], **settings: Any) -> list[np.ndarray]:
    """Draw one picture of each prompt, number k by the seed k."""
    images = [pipe.generate(one, seed=seed, **settings).image for seed, one in enumerate(prompts)]
    return [to_uint8(image)[0].movedim(0, 2).numpy() for image in images]


def right(pipe: sd35.Pipeline, prompts: Sequence[str], **settings: Any) -> float:
    """The share of pictures in which the judge reads what the prompt says."""
    drawn = pictures(pipe, prompts, **settings)
    return sum(judge.agrees(judge.read(one), parse(p)) for one, p in zip(drawn, prompts, strict=True)) / len(
        drawn
    )


def known(count: int, seed: int) -> list[str]:
    """Prompts of what the model knows."""
    source = seeded(seed)
    return [caption(random_scene(source), source) for _ in range(count)]


# --- a hexagon


def hexagon(u: Tensor, v: Tensor) -> Tensor:
    """Regular, a corner up, of circumradius 1.1: the largest of three pairs of signed distances."""
    sides = [
        u.abs(),
        *((u * math.cos(turn) + v * math.sin(turn)).abs() for turn in (math.pi / 3, -math.pi / 3)),
    ]
    return torch.stack(torch.broadcast_tensors(*sides)).amax(0) - 1.1 * math.cos(math.pi / 6)


def paint_hexagons(folder: Path, count: int) -> None:
    """Paint pictures of one hexagon each, in every colour, with their captions, by the project's painter."""
    folder.mkdir(parents=True, exist_ok=True)
    source, before = seeded(7), outlines.KINDS["circle"]
    outlines.KINDS["circle"] = hexagon  # a painter that knows no hexagon paints one for a circle
    try:
        for number in range(count):
            scene = random_scene(source, shapes=1)
            while scene.shapes[0].kind != "circle" or scene.shapes[0].size == "small":
                scene = random_scene(source, shapes=1)
            to_pil(draw([scene], source)[0]).save(folder / f"{number:02}.png")
            shape = scene.shapes[0]
            text = f"a {shape.colour} hexagon on a {scene.background} background"
            (folder / f"{number:02}.txt").write_text(text)
    finally:
        outlines.KINDS["circle"] = before


def is_hexagon(picture: np.ndarray, colour: str) -> bool:
    """Whether a picture shows one shape of this colour with six equal corners."""
    pixels = picture.astype(float)
    ground = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    parts = judge.components(np.linalg.norm(pixels - ground, axis=-1) > judge.FOREGROUND)
    parts = [part for part in parts if part.sum() > judge.SPECK * part.size]
    if len(parts) != 1 or judge.read(picture).shapes[0].colour != colour:
        return False
    rows, columns = np.nonzero(parts[0])
    outline = judge.outline(parts[0][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    others = max(outline.swell[1:6])
    # A hexagon that is painted swells by 0.055 to 0.061 six times a turn, a circle not at all.
    return (
        0.035 < outline.swell[6] < 0.08
        and others < 0.03
        and outline.hole < 0.03
        and 0.7 < outline.fill < 0.82
    )


def hexagons(pipe: sd35.Pipeline) -> float:
    """The share of hexagons that are drawn right, of colours and backgrounds in pairs."""
    prompts = [(c, f"a {c} hexagon on a {b} background") for c in COLOURS for b in ("white", "black")]
    drawn = pictures(pipe, [prompt for _, prompt in prompts], steps=FEW)
    return sum(is_hexagon(one, colour) for one, (colour, _) in zip(drawn, prompts, strict=True)) / len(drawn)


def lesson_hexagon(folder: Path, steps: int) -> None:
    """A LoRA of rank 8 from 20 pictures, without and with prior preservation."""
    paint_hexagons(folder / "pictures", 20)
    rest = known(16, seed=11)
    pipe = sd35.load("tiny")
    told(lesson="hexagon", before={"hexagons": hexagons(pipe), "rest right": right(pipe, rest, steps=FEW)})
    common = {
        "steps": steps,
        "rank": 8,
        "target": ("blocks",),
        "text_target": ("blocks",),
        "learning_rate": 1e-3,
        "batch_size": 2,
        "buckets": False,
        "warmup": 20,
        "save_every": 10_000,
    }
    ways: dict[str, Callable[[], Path]] = {
        "without": lambda: sd35.train_lora(
            "tiny", folder / "pictures", folder / "without", places={"cache": folder / "cache"}, **common
        ),
        "with": lambda: sd35.train_dreambooth(
            "tiny",
            folder / "pictures",
            folder / "with",
            places={"cache": folder / "cache"},
            class_prompt=tuple(known(40, seed=12)),
            class_pictures=40,
            **common,
        ),
    }
    for name, train in ways.items():
        began = time.perf_counter()
        path = train()
        seconds = time.perf_counter() - began
        taught = sd35.load("tiny", lora=path)
        told(
            lesson="hexagon",
            prior=name,
            steps=steps,
            seconds=round(seconds),
            hexagons=hexagons(taught),
            rest_right=right(taught, rest, steps=FEW),
        )


# --- reflow


def lesson_reflow(folder: Path, steps: int) -> None:
    """All weights, on 1000 pairs of the model's own ODE at guidance 4.5; measured at prompts it never saw."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(known(500, seed=21)))
    test = known(16, seed=22)

    def ends(pipe: sd35.Pipeline, count: int, scale: float) -> Tensor:
        drawn = [pipe.generate(p, seed=s, steps=count, guidance_scale=scale) for s, p in enumerate(test)]
        return torch.cat([one.latents for one in drawn])

    def distances(pipe: sd35.Pipeline, scale: float, converged: Tensor) -> dict[int, float]:
        return {n: float((ends(pipe, n, scale) - converged).square().mean().sqrt()) for n in (1, 2, 4, 8, 14)}

    pipe = sd35.load("tiny")
    converged = ends(pipe, 100, 4.5)
    told(lesson="reflow", before=distances(pipe, 4.5, converged), right=right(pipe, test, steps=4))
    began = time.perf_counter()
    path = sd35.train_reflow(
        "tiny",
        folder / "prompts.txt",
        folder / "run",
        whole=True,
        pairs=1000,
        pair_steps=28,
        steps=steps,
        batch_size=8,
        learning_rate=2e-4,
        optimizer="muon",
        warmup=20,
        ema=0.99,
        save_every=10_000,
    )
    taught = sd35.load(path, vae="tiny", text_encoders="tiny")
    told(
        lesson="reflow",
        steps=steps,
        seconds=round(time.perf_counter() - began),
        to_the_old_end=distances(taught, 1.0, converged),
        to_its_own_end=distances(taught, 1.0, ends(taught, 100, 1.0)),
        right=right(taught, test, steps=4, guidance_scale=1.0),
    )


LESSONS = {"hexagon": (lesson_hexagon, 300), "reflow": (lesson_reflow, 600)}


def main() -> None:
    """Give the lesson that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lesson", choices=LESSONS)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, metavar="N")
    args = parser.parse_args()
    lesson, steps = LESSONS[args.lesson]
    lesson(args.output, args.steps or steps)


if __name__ == "__main__":
    main()
