"""Whether an edit changes what was asked for and nothing else, read by the judge of the tests.

    python benchmarks/editing.py

The prompts say size, colour, kind and place of a shape, and leave the background to the noise. The edit
asks for another colour. It is right when the judge finds one shape, as the prompt has it, in the new
colour; and the rest is in place when also the background is the old one, the shape's centre has moved by
less than 0.05 of the picture's side and its radius changed by less than a fifth. Only pictures that were
right before are counted. The last line draws the edited prompt from another seed: what being in place is
worth. Prints Markdown.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from first_judge import load_judge
from numpy.typing import NDArray
from PIL import Image

import sd35
from sd35.device import as_device
from sd35.tiny.captions import parse

KINDS = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = (("red", "blue"), ("blue", "yellow"), ("green", "pink"), ("orange", "purple"))
PLACES = ("on the left", "at the top", "on the right")

EDITS: dict[str, dict[str, Any]] = {
    "naive inversion, recorded (DirectEdit)": {"method": "direct_edit"},
    "exact": {"method": "inversion", "accuracy": 1e-2},
    "exact, strength 0.9": {"method": "inversion", "accuracy": 1e-2, "strength": 0.9},
    "exact, strength 0.8": {"method": "inversion", "accuracy": 1e-2, "strength": 0.8},
    "DirectEdit, strength 0.8": {"method": "direct_edit", "strength": 0.8},
    "FlowEdit": {"method": "flow_edit"},
    "FlowEdit, strength 0.9": {"method": "flow_edit", "strength": 0.9},
    "FlowEdit, strength 0.8": {"method": "flow_edit", "strength": 0.8},
    "RF-Inversion": {"method": "rf_inversion"},
    "RF-Inversion, η 0.6": {"method": "rf_inversion", "eta": 0.6},
}
"""By the name in the table, which `--rows` begins."""
AROUND = 1.35  # radii from a shape's centre, within which a pixel may be the shape's: a star's point, an edge


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw, edit, judge, print."""
    args = arguments().parse_args(argv)
    pipe, judge = sd35.load(args.model, as_device(args.device), torch.float32), load_judge()
    pairs = [*COLOURS, *((target, source) for source, target in COLOURS)]
    wanted = [
        tuple(f"a large {colour} {kind} {place}" for colour in colours)
        for place in PLACES
        for colours in pairs
        for kind in KINDS
    ][: args.prompts]
    sources, targets = ([pair[which] for pair in wanted] for which in (0, 1))
    low, high = args.guidance_interval
    drawing = {
        "steps": args.steps,
        "schedule": args.schedule,
        "guidance_scale": args.guidance_scale,
        "guidance": {
            "rule": "apg",
            "apg_parallel": 1.0,
            "apg_norm": args.guidance_norm,
            "interval": (low, high),
        },
        "batch_size": args.batch_size,
    }
    drawn = pipe.generate(sources, seed=0, **drawing)
    readings = [judge.read(np.asarray(image)) for image in drawn.images]
    before = {
        index: reading
        for index, reading in enumerate(readings)
        if judge.agrees(reading, parse(sources[index]))
    }
    print(f"{len(sources)} pictures, {len(before)} of them right before the edit.\n")
    print(
        "| edit | colour changed | and the rest in place | outside, dB: least | median |\n" + "|---" * 5 + "|"
    )
    shown = Shown(targets, [np.asarray(image) for image in drawn.images], before, judge)
    for name, options in EDITS.items():
        if name.startswith(tuple(args.rows)):
            shown.row(name, pipe.edit(drawn.state(), targets, **options).images)
    if "another seed".startswith(tuple(args.rows)):
        shown.row("another seed", pipe.generate(targets, seed=1000, **drawing).images)


@dataclass(frozen=True)
class Shown:
    """What edits are compared with."""

    targets: Sequence[str]
    pictures: Sequence[NDArray[np.uint8]]
    before: Mapping[int, Any]  # the readings of those pictures that were right
    judge: ModuleType

    def row(self, name: str, images: Sequence[Image.Image]) -> None:
        """Print one line of the table."""
        pictures = {index: np.asarray(images[index]) for index in self.before}
        after = {index: self.judge.read(picture) for index, picture in pictures.items()}
        changed = [
            index
            for index, reading in after.items()
            if self.judge.agrees(reading, parse(self.targets[index]))
        ]
        in_place = sum(stands_as(after[index], self.before[index]) for index in changed)
        near = [
            outside(pictures[index], self.pictures[index], self.before[index].shapes[0]) for index in changed
        ]
        found = [f"{value:.1f}" for value in (min(near), float(np.median(near)))] if near else ["", ""]
        counts = [f"{count} of {len(after)}" for count in (len(changed), in_place)]
        print("| " + " | ".join([name, *counts, *found]) + " |", flush=True)


def outside(one: NDArray[np.uint8], other: NDArray[np.uint8], shape: Any) -> float:
    """The PSNR of two pictures of 8 bits outside of a shape."""
    side = one.shape[0]
    down, across = (np.mgrid[:side, :side] + 0.5) / side - 0.5  # as the judge counts
    is_outside = np.hypot(across - shape.x, down - shape.y) > AROUND * shape.radius
    error = (one.astype(float) - other)[is_outside]
    return float(20 * np.log10(255 / max(np.sqrt(np.mean(error**2)), 1e-9)))


def stands_as(after: Any, before: Any) -> bool:
    """Whether a picture of one shape has the background of another, and its shape the place and the size."""
    one, other = after.shapes[0], before.shapes[0]
    moved = np.hypot(one.x - other.x, one.y - other.y)
    is_as_large = abs(one.radius / other.radius - 1) < 0.2
    return bool(after.background == before.background and moved < 0.05 and is_as_large)


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, default=100, help="144 at most")
    parser.add_argument("--rows", nargs="+", default=[""], help="how the names of edits begin")
    parser.add_argument("--schedule", default="tailed")
    parser.add_argument(
        "--guidance-interval", type=float, nargs=2, default=(0.7, 1.0), metavar=("LOW", "HIGH")
    )
    parser.add_argument("--guidance-norm", type=float, default=5.0, help="the most that guidance adds")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance-scale", "--cfg", type=float, default=4.5)
    parser.add_argument("--batch-size", type=int, default=16)
    return parser


if __name__ == "__main__":
    main()
