"""Hide a mark in the noise that a picture is drawn from, and find it again in the saved picture.

    python examples/watermark.py --pictures 200

The marks are tree rings and Gaussian shading; `sd35.watermark` tells what they are.

Every picture has a key of its own. It is saved with 8 bits and its latents beside it; both are read back
and inverted with the prompt that stands in the file, and without any, as one who meets the picture
elsewhere would. A mark counts as found where its key agrees with the noise better than 99 % of other keys
do, so that one in a hundred pictures that do not bear it is expected to pass; here those are the pictures
with the other mark.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import flow
import sd35
from sd35.tiny.captions import held_out_prompts
from sd35.watermark import FOUND

FIRST_KEY = 1_000
"""Of the first picture; those that follow count on from it."""

INVERSES: dict[str, tuple[bool, dict[str, Any]]] = {
    "naive": (True, {"method": "naive"}),
    "exact": (True, {"method": "exact", "accuracy": 0.1}),
    "naive, without the prompt": (False, {"method": "naive"}),
}
"""By the name in the table: whether the prompt is known, and what `flow.invert` is told."""


class Case(NamedTuple):
    """One line of the table."""

    mark: str
    source: str
    inverse: str


class Found:
    """The noise of saved pictures of one size, by what their files alone hold."""

    def __init__(self, pipe: sd35.Pipeline, settings: Sequence[sd35.Settings]) -> None:
        first, size = settings[0], len(settings)
        self.sigmas = first.sigmas
        self.with_prompt = pipe.velocity(
            [one.prompts[0] for one in settings], first.negative, first.guidance_scale, batch_size=size
        )
        self.without = pipe.velocity([""] * size, guidance_scale=1, batch_size=size)

    def by_inverse(self, latents: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The name of each inverse, and the noise that it finds for these latents."""
        for name, (knows_prompt, options) in INVERSES.items():
            velocity = self.with_prompt if knows_prompt else self.without
            yield name, flow.invert(velocity, latents, self.sigmas, **options)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw pictures with either mark, and print how many of them are told to bear it."""
    args = arguments().parse_args(argv)
    pipe = sd35.load(args.model, args.device, getattr(torch, args.dtype))
    shape = pipe.latents_shape(None, None)
    marks = {"tree rings": sd35.TreeRings(shape), "Gaussian shading": sd35.GaussianShading(shape)}
    prompts = held_out_prompts(args.pictures, shapes=1, seed=0)
    # How often each mark was found, by whether it was there.
    found: dict[Case, dict[bool, list[bool]]] = defaultdict(lambda: {True: [], False: []})
    with TemporaryDirectory() as folder, tqdm(total=args.pictures * len(marks), unit="picture") as bar:
        for start in range(0, args.pictures, args.batch_size):
            chosen = range(start, min(start + args.batch_size, args.pictures))
            plain = sd35.draw_noise([torch.Generator().manual_seed(seed) for seed in chosen], shape)
            keys = [FIRST_KEY + picture for picture in chosen]
            for hidden in marks:
                noise = marks[hidden].hide(plain, keys)
                result = pipe.generate(
                    prompts[chosen.start : chosen.stop],
                    noise=noise,
                    steps=args.steps,
                    batch_size=args.batch_size,
                )
                for source, inverse, back in read_back(pipe, result, Path(folder)):
                    for name, mark in marks.items():
                        shares = sd35.shares_as_good(mark, back, keys)
                        found[Case(name, source, inverse)][hidden == name] += (shares <= FOUND).tolist()
                bar.update(len(chosen))
    print(table(found))


def read_back(pipe: sd35.Pipeline, result: sd35.Result, folder: Path) -> Iterator[tuple[str, str, Tensor]]:
    """Save pictures and latents, and give what was read, by which inverse, and the noise that it found."""
    pictures = result.save(folder / "picture.png", overwrite=True)
    (latents,) = result.state().save(folder / "latents.safetensors", overwrite=True)
    find = Found(pipe, [sd35.read_settings(path) for path in pictures])
    sources = {
        "latents": sd35.State.load(latents).latents,
        "picture": pipe.encode(pictures),
    }
    for source, data in sources.items():
        assert data is not None
        for inverse, back in find.by_inverse(data):
            yield source, inverse, back


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", help="to compute in (default float32)")
    parser.add_argument("--pictures", type=int, default=200, help="with each mark (default 200)")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--batch-size", type=int, default=10)
    return parser


def table(found: Mapping[Case, Mapping[bool, Sequence[bool]]]) -> str:
    """The counts, in Markdown."""
    lines = ["| mark | found in | inverse | where it is | where it is not |", "|---|---|---|---|---|"]
    for case, counts in sorted(found.items()):
        there, absent = (f"{sum(counts[here])} of {len(counts[here])}" for here in (True, False))
        lines.append(f"| {' | '.join(case)} | {there} | {absent} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
