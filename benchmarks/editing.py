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
from types import ModuleType
from typing import Any

import numpy as np
import torch
from first_judge import load_judge
from PIL import Image

import sd35
from sd35.device import as_device
from sd35.tiny.captions import parse

KINDS = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = (("red", "blue"), ("blue", "yellow"), ("green", "pink"), ("orange", "purple"))
PLACES = ("on the left", "at the top")

EDITS: dict[str, dict[str, Any]] = {
    "inversion": {"method": "inversion"},
    "inversion, strength 0.9": {"method": "inversion", "strength": 0.9},
    "inversion, strength 0.8": {"method": "inversion", "strength": 0.8},
    "FlowEdit": {"method": "flow_edit"},
    "FlowEdit, strength 0.9": {"method": "flow_edit", "strength": 0.9},
    "FlowEdit, strength 0.8": {"method": "flow_edit", "strength": 0.8},
    "FlowEdit, strength 0.9, source guidance 1": {
        "method": "flow_edit",
        "strength": 0.9,
        "source_guidance_scale": 1.0,
    },
    "RF-Inversion": {"method": "rf_inversion"},
    "RF-Inversion, η 0.6": {"method": "rf_inversion", "eta": 0.6},
}


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw, edit, judge, print."""
    args = arguments().parse_args(argv)
    pipe, judge = sd35.load(args.model, as_device(args.device), torch.float32), load_judge()
    wanted = [
        tuple(f"a large {colour} {kind} {place}" for colour in colours)
        for colours in COLOURS
        for place in PLACES
        for kind in KINDS
    ][: args.prompts]
    sources, targets = ([pair[which] for pair in wanted] for which in (0, 1))
    drawing = {"steps": args.steps, "guidance_scale": args.guidance_scale, "batch_size": args.batch_size}
    drawn = pipe.generate(sources, seed=0, **drawing)
    readings = [judge.read(np.asarray(image)) for image in drawn.images]
    before = {
        index: reading
        for index, reading in enumerate(readings)
        if judge.agrees(reading, parse(sources[index]))
    }
    print(f"{len(sources)} pictures, {len(before)} of them right before the edit.\n")
    print("| edit | colour changed | and the rest in place |\n|---|---|---|")
    for name, options in EDITS.items():
        show(name, pipe.edit(drawn.state(), targets, **options).images, targets, before, judge)
    other = pipe.generate(targets, seed=1000, **drawing)
    show("another seed", other.images, targets, before, judge)


def show(
    name: str,
    images: Sequence[Image.Image],
    targets: Sequence[str],
    before: Mapping[int, Any],
    judge: ModuleType,
) -> None:
    """Print one line of the table: `before` has the readings of those pictures that were right."""
    after = {index: judge.read(np.asarray(images[index])) for index in before}
    changed = [index for index, reading in after.items() if judge.agrees(reading, parse(targets[index]))]
    in_place = sum(stands_as(after[index], before[index]) for index in changed)
    print(f"| {name} | {len(changed)} of {len(before)} | {in_place} of {len(before)} |", flush=True)


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
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance-scale", "--cfg", type=float, default=4.5)
    parser.add_argument("--batch-size", type=int, default=16)
    return parser


if __name__ == "__main__":
    main()
