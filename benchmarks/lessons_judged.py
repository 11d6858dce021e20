"""What the lessons share: prompts, pictures drawn many at once, who reads them, and what is printed."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from first_judge import load_judge
from PIL import Image

import flow
import sd35
from sd35.noise import draw_noise, generators, seeded
from sd35.presets import numbers_of
from sd35.tiny.captions import caption, parse
from sd35.tiny.scenes import random_scene
from vae.image import to_uint8

TOGETHER = 16
"""Pictures of a batch."""
OWN: dict[str, Any] = {"scale": 4.5, **numbers_of("tiny", None)["guidance"]}
"""How the embedded model is guided where nothing is said."""


judge = load_judge()


def told(lesson: str, **result: Any) -> None:
    """Print a result."""
    print(json.dumps({"lesson": lesson, **result}), flush=True)


@contextmanager
def clocked() -> Iterator[dict[str, int]]:
    """Fill in the processor's seconds that the block took, and those by the clock on the wall."""
    spent: dict[str, int] = {}
    processor, wall = time.process_time(), time.monotonic()
    yield spent
    spent["processor_seconds"] = round(time.process_time() - processor)
    spent["wall_seconds"] = round(time.monotonic() - wall)


def known(count: int, seed: int) -> list[str]:
    """Prompts of what the model knows, training's and held-out ones."""
    source = seeded(seed)
    return [caption(random_scene(source), source) for _ in range(count)]


def ends(
    pipe: sd35.Pipeline,
    prompts: Sequence[str],
    sigmas: torch.Tensor,
    *,
    scale: float,
    solver: str = "euler",
    **guidance: Any,
) -> torch.Tensor:
    """Latents of one picture of each prompt, number k by the seed k; `guidance` as `velocity` takes it."""
    parts = []
    for first in range(0, len(prompts), TOGETHER):
        part = list(prompts[first : first + TOGETHER])
        velocity = pipe.velocity(part, guidance_scale=scale, batch_size=len(part), **guidance)
        noise = draw_noise(generators(range(first, first + len(part))), pipe.latents_shape(None, None))
        with torch.inference_mode():
            parts.append(flow.solve(velocity, noise, sigmas, solver))
    return torch.cat(parts)


def pictures(
    pipe: sd35.Pipeline, prompts: Sequence[str], *, steps: int, scale: float, **guidance: Any
) -> np.ndarray:
    """The same as pictures, (B, H, W, 3) of 8 bits, by Euler's method."""
    with torch.inference_mode():
        latents = ends(pipe, prompts, flow.sigmas(steps), scale=scale, **guidance)
        images = [pipe.decode(part) for part in latents.split(TOGETHER)]
    return to_uint8(torch.cat(images)).movedim(1, 3).numpy()


def right(drawn: np.ndarray, prompts: Sequence[str]) -> int:
    """In how many pictures the judge reads what the prompt says."""
    return sum(judge.agrees(judge.read(one), parse(p)) for one, p in zip(drawn, prompts, strict=True))


def decibels(found: torch.Tensor | np.ndarray, wanted: torch.Tensor | np.ndarray) -> float:
    """How near tensors or pictures are: their mean square over that of the difference."""
    found, wanted = (torch.as_tensor(one, dtype=torch.float64) for one in (found, wanted))
    ratio = wanted.square().mean() / (found - wanted).square().mean()
    return round(float(10 * torch.log10(ratio)), 2)


def save_strip(path: Path, *rows: np.ndarray) -> None:
    """Pictures (B, H, W, 3) in rows, one below the other, with a gap of two pixels."""
    padded = [np.pad(row, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in padded])).save(
        path, optimize=True
    )
