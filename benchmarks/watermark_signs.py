"""Tell the signs of the noise from a picture in one forward, and find Gaussian shading by them.

    python benchmarks/watermark_signs.py --output runs/signs        goes on where it was cut off

A copy of the transformer learns, from pairs of noise and picture that the model drew, to tell from the
latents of a saved picture which values of the noise are above 0 (arXiv:2602.09494), without the prompt. It is
compared with inverting as `sd35 watermark find` does, and with the exact inverse, which is given prompt and
guidance, on pictures of held-out prompts, each with a key of its own: how many signs are right, how often
the key is found where it is and where it is not, and how many messages of 64 bits are read without a fault.
It learns from PNG and JPEG files. The painter's pictures were drawn by no model. Prints Markdown.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inversion_pictures import each, jpeg, resized
from PIL import Image
from rows import show
from signs_learned import TOGETHER, draw_pairs, learn, logits
from torch import Tensor

import sd35
from mmdit import MMDiT
from sd35.marks import FOUND, GaussianShading, shares_as_good
from sd35.noise import seeded
from sd35.tiny.captions import held_out_prompts
from sd35.tiny.painting import draw
from sd35.tiny.scenes import random_scene
from sd35.train.cache import Cache
from textenc import Encoding

FIRST_KEY = 1_000
"""Of the first picture; those that follow count on from it."""
HOW: Mapping[str, Any] = {"steps": 28, "batch_size": TOGETHER}
"""How what is measured is drawn, and inverted."""
EXACT = 8
"""Pictures that the exact inverse is tried on."""

Tensors = dict[str, Tensor]


def noisy(picture: Image.Image) -> Image.Image:
    """With noise whose deviation is a quarter of the range."""
    pixels = torch.from_numpy(np.array(picture)).float()
    pixels += 64 * torch.randn(pixels.shape, generator=seeded(int(pixels.sum())))
    return Image.fromarray(pixels.round().clamp(0, 255).byte().numpy())


FILES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "PNG": lambda picture: picture,
    **{f"JPEG {quality}": partial(jpeg, quality=quality) for quality in (90, 75, 50, 30, 10)},
    "half the size and back": lambda picture: resized(picture, picture.width // 2),
    "with noise": noisy,
}
"""What becomes of a picture, by its name in the table."""
EXACTLY = ("latents", "PNG", "JPEG 90", "JPEG 75")
"""Rows that the exact inverse is tried on."""
PAINTED = "painted"
"""The row of pictures that no model drew."""


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw, invert, train, find, print; what is there already is read."""
    args = arguments().parse_args(argv)
    pipe = sd35.load("tiny", dtype=torch.bfloat16)
    cache = Cache(args.output, pipe.weights)

    def kept(key: str, make: Callable[..., Tensors], *given: object) -> Tensors:
        return cache.read(cache.kept(key, lambda: make(pipe, *given)))

    def in_batches(kind: str, count: int, make: Callable[..., Tensors], *given: object) -> Tensors:
        batches = [range(count)[first : first + TOGETHER] for first in range(0, count, TOGETHER)]
        made = [kept(f"{kind}/{one.start}-{one.stop}", make, one, *given) for one in batches]
        return {name: torch.cat([one[name] for one in made]) for name in made[0]}

    pairs = in_batches("pairs", args.pairs, draw_pairs)
    prompts = held_out_prompts(args.pictures, shapes=1, seed=0)
    pictures = in_batches("marked", args.pictures, draw_marked, prompts)
    noise = pictures.pop("noise")
    pictures |= in_batches("painted", args.pictures, paint)

    found: dict[str, dict[str, Tensors]] = {"naive": {}, "exact": {}, "one forward": {}}
    inverted = min(args.inverted, args.pictures)
    for name, latents in pictures.items():
        found["naive"][name] = in_batches(f"naive/{name}", inverted, invert, latents)
    for name in EXACTLY:
        exactly = pictures[name], prompts
        found["exact"][name] = in_batches(f"exact/{name}", min(EXACT, inverted), invert_exactly, *exactly)
    empty = pipe.encode_prompt("")
    mmdit = learn(args.output / "training", pairs, empty, args.steps)
    for name, latents in pictures.items():
        found["one forward"][name] = read(mmdit, latents, empty)

    heads = ["picture", "noise by", "signs right", "found where it is", "where it is not", "messages whole"]
    show(
        [*heads, "CPU seconds a picture"],
        [
            [
                name,
                method,
                *counts(ones[name]["noise"], noise, name == PAINTED),
                f"{ones[name]['seconds'].mean():.3f}",
            ]
            for name in ("latents", *FILES, PAINTED)
            for method, ones in found.items()
            if name in ones
        ],
    )


def draw_marked(pipe: sd35.Pipeline, batch: range, prompts: Sequence[str]) -> Tensors:
    """Marked noise, and the latents that were drawn from it, as they are and of every kind of file."""
    mark: dict[str, Any] = {"key": FIRST_KEY + batch.start, "mark": "gaussian_shading", "seed": batch.start}
    drawn = pipe.watermark(prompts[batch.start : batch.stop], **mark, **HOW)
    image = pipe.decode(drawn.latents)
    files = {name: pipe.encode(each(image, change)) for name, change in FILES.items()}
    return {"noise": drawn.noise, "latents": drawn.latents, **files}


def paint(pipe: sd35.Pipeline, batch: range) -> Tensors:
    """The latents of pictures that no model drew."""
    source = seeded(batch.start)
    image = draw([random_scene(source) for _ in batch], source)
    return {PAINTED: pipe.encode(each(image, FILES["PNG"]))}


def invert(pipe: sd35.Pipeline, batch: range, latents: Tensor) -> Tensors:
    """As `sd35 watermark find`: the flipped Euler method without prompt and guidance."""
    chosen = latents[batch.start : batch.stop]
    return clocked(lambda: pipe.find_watermark(chosen, key=0, **HOW).noise)


def invert_exactly(pipe: sd35.Pipeline, batch: range, latents: Tensor, prompts: Sequence[str]) -> Tensors:
    """As the pictures were drawn, with their prompts and guidance, to 1e-2."""
    chosen, own = latents[batch.start : batch.stop], prompts[batch.start : batch.stop]
    how: dict[str, Any] = {"accuracy": 1e-2, "method_options": {"check": False}, "measure": False}
    return clocked(lambda: pipe.invert(chosen, own, **how, **HOW).noise)


def read(mmdit: MMDiT, latents: Tensor, empty: Encoding) -> Tensors:
    """The logits, which have the signs of the noise."""
    batches = latents.split(TOGETHER)
    return clocked(lambda: torch.cat([logits(mmdit, one, empty) for one in batches]))


def clocked(find: Callable[[], Tensor]) -> Tensors:
    """What is found of the noise of pictures, and the processor's seconds that each of them took."""
    began, noise = time.process_time(), find()
    return {"noise": noise, "seconds": torch.full((len(noise),), time.process_time() - began) / len(noise)}


def counts(found: Tensor, noise: Tensor, painted: bool) -> list[str]:
    """What the table tells of the noise that was found; of painted pictures, what was found by chance."""
    count, mark = len(found), GaussianShading(noise.shape[1:])
    own, others = (range(first, first + count) for first in (FIRST_KEY, FIRST_KEY + len(noise)))
    absent = (shares_as_good(mark, found, others) <= FOUND).sum()
    if painted:
        return ["", "", f"{absent} of {count}", ""]
    right = 100 * (found.sign() == noise[:count].sign()).float().mean()
    there = (shares_as_good(mark, found, own) <= FOUND).sum()
    whole = (mark.agreement(found, own).diagonal() == 1).sum()
    return [f"{right:.1f} %", *(f"{one} of {count}" for one in (there, absent, whole))]


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="of all that is made")
    parser.add_argument("--pairs", type=int, default=640, help="to learn from (default 640)")
    parser.add_argument("--steps", type=int, default=250, help="of training (default 250)")
    parser.add_argument("--pictures", type=int, default=200, help="to read signs from (default 200)")
    parser.add_argument("--inverted", type=int, default=32, help="of those, to invert too (default 32)")
    return parser


if __name__ == "__main__":
    main()
