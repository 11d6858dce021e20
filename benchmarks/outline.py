"""Whether a drawn outline says where a shape is, how large and how it is turned: the embedded ControlNet.

    python benchmarks/outline.py                                    # 100 prompts of a kind; minutes
    python benchmarks/outline.py --prompts 8 --strip outline.png    # and a strip of pictures

Four kinds of prompts, two of them without a drawing as well, from the same noise. Those that tell all are
held out of the training of model and ControlNet, and the outline is where they say. The others tell kind,
colour and background, in combinations that the ControlNet never met, and leave open what the outline tells:
upright, turned, or as Canny's edges of a picture in other colours. The drawings here are polygons of Pillow,
and the shape in a picture is what differs from the frame's colour: neither is code that training ran.

A shape lies on the outline when its pixels and those within the outline have an intersection over union of
at least 0.7. It is right when the judge of the tests finds one shape as the prompt has it. A picture that is
drawn to a turned outline is turned back before, as the judge knows upright shapes alone. Prints Markdown.
"""

import argparse
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from first_judge import load_judge
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rows import show

import sd35
from sd35.device import as_device, as_dtype
from sd35.noise import seeded
from sd35.tiny.captions import held_out_prompts, parse
from sd35.tiny.scenes import PLACES, SIZES, Shape, random_scene
from sd35.tiny.traced import is_kept_back

SIDE = 128
ON_OUTLINE = 0.7  # intersection over union
APART = 45  # from the frame's colour, Euclidean in sRGB of 0 to 255, is something else
LINE = 2  # pixels
FINER = 4  # drawn so much larger first, for smooth lines
SHOWN = 3  # pictures on the strip of each of two groups
TOLD, OPEN, TURNED, EDGES = GROUPS = ("all told", "left open", "left open, turned", "edges of a picture")

Polygons = list[list[tuple[float, float]]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """A prompt and where its shape is to be; lengths are fractions of the side, from the picture's centre."""

    prompt: str
    kind: str
    x: float
    y: float
    radius: float
    turn: float = 0.0  # degrees, clockwise

    def polygons(self) -> Polygons:
        """The outline in fractions of the side, from the upper left corner; a ring has two."""
        cos, sin = math.cos(math.radians(self.turn)), math.sin(math.radians(self.turn))
        return [
            [
                (
                    0.5 + self.x + self.radius * (cos * u - sin * v),
                    0.5 + self.y + self.radius * (sin * u + cos * v),
                )
                for u, v in corners
            ]
            for corners in corners_of(self.kind)
        ]

    def drawing(self) -> Image.Image:
        """White lines on black."""
        canvas = Image.new("L", (FINER * SIDE,) * 2)
        for polygon in self.polygons():
            points = [(FINER * SIDE * x, FINER * SIDE * y) for x, y in polygon]
            ImageDraw.Draw(canvas).line([*points, *points[:2]], 255, FINER * LINE, joint="curve")
        return canvas.resize((SIDE, SIDE), Image.Resampling.BOX).convert("RGB")

    def filled(self) -> Mask:
        """What lies within the outline, (128, 128)."""
        canvas = Image.new("L", (FINER * SIDE,) * 2)
        for number, polygon in enumerate(self.polygons()):
            points = [(FINER * SIDE * x, FINER * SIDE * y) for x, y in polygon]
            ImageDraw.Draw(canvas).polygon(points, 0 if number else 255)
        return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX)) > 127


def corners_of(kind: str) -> Polygons:
    """The corners of a shape of radius 1 about the middle of its box, as the model knows the six kinds."""

    def round_(radius: float) -> list[tuple[float, float]]:
        return [(radius * math.cos(a / 32), radius * math.sin(a / 32)) for a in range(201)]

    def rayed(radii: Sequence[float], down: float) -> list[tuple[float, float]]:
        step = 2 * math.pi / len(radii)
        return [(r * math.sin(i * step), down - r * math.cos(i * step)) for i, r in enumerate(radii)]

    arm = 0.32
    cross = [(arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, 1)]
    outlines: dict[str, Polygons] = {
        "circle": [round_(1)],
        "square": [[(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]],
        "triangle": [rayed([1.2] * 3, 0.3)],
        "star": [rayed([1.08, 0.46] * 5, 0.103)],
        "cross": [[*cross, *((-u, -v) for u, v in cross)]],
        "ring": [round_(1), round_(0.55)],
    }
    return outlines[kind]


def told(count: int) -> list[Case]:
    """Held-out prompts of one shape, with the outline about where they say."""
    cases, generator = [], seeded(5, 1)
    for prompt in held_out_prompts(count, shapes=1, seed=77):
        (shape,) = parse(prompt).shapes
        x, y, radius = (2 * torch.rand(3, generator=generator) - 1).tolist()
        left, down = PLACES[str(shape.place)]
        size = SIZES[str(shape.size)] * (1 + 0.04 * radius)
        cases.append(Case(prompt, shape.kind, left + 0.025 * x, down + 0.025 * y, size))
    return cases


def left_open(count: int, *, turned: bool) -> list[Case]:
    """Prompts that the ControlNet never met, with outlines anywhere."""
    cases, generator = [], seeded(5, 2 + turned)
    while len(cases) < count:
        scene = random_scene(generator, shapes=1)
        if not is_kept_back(scene) or (turned and scene.shapes[0].kind in ("circle", "ring")):
            continue
        x, y, size, turn = torch.rand(4, generator=generator).tolist()
        radius = 0.1 + 0.18 * size
        room = 0.48 - (1.25 if turned else 1.0) * radius
        where = room * (2 * x - 1), room * (2 * y - 1)
        prompt = prompt_of(scene.shapes[0], scene.background)
        cases.append(Case(prompt, scene.shapes[0].kind, *where, radius, 360 * turn if turned else 0.0))
    return cases


def recoloured(cases: Sequence[Case]) -> list[str]:
    """For each case a prompt of its kind, in colours that the ControlNet never met it in."""
    prompts, generator = [], seeded(5, 4)
    for case in cases:
        while True:
            scene = random_scene(generator, shapes=1)
            if scene.shapes[0].kind == case.kind and is_kept_back(scene):
                break
        prompts.append(prompt_of(scene.shapes[0], scene.background))
    return prompts


def prompt_of(shape: Shape, background: str) -> str:
    """Kind, colour and background, and no more."""
    a, on = ("an" if word[0] in "aeiou" else "a" for word in (shape.colour, background))
    return f"{a} {shape.colour} {shape.kind} on {on} {background} background"


def shape_in(picture: NDArray[np.uint8]) -> Mask:
    """The pixels that are more of another colour than of the frame's, (128, 128)."""
    pixels = picture.astype(np.float64)
    ground = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    away = np.linalg.norm(pixels - ground, axis=-1) > APART
    if not away.any():
        return away
    change = np.median(pixels[away], axis=0) - ground
    return (pixels - ground) @ change / (change @ change) > 0.5


def overlap(one: Mask, other: Mask) -> float:
    """Intersection over union; 0 of nothing and nothing."""
    return float((one & other).sum() / max((one | other).sum(), 1))


def turned_back(picture: Image.Image, case: Case) -> Image.Image:
    """The picture with the case's middle in its centre and upright, for the judge."""
    ground = tuple(int(value) for value in np.median(np.asarray(picture)[0], axis=0))
    middle = SIDE * (0.5 + case.x), SIDE * (0.5 + case.y)
    move = SIDE / 2 - middle[0], SIDE / 2 - middle[1]
    if not case.turn:
        return picture
    return picture.rotate(case.turn, Image.Resampling.BICUBIC, False, middle, move, fillcolor=ground)


class Drawer:
    """Draws the pictures of prompts, always from the same noise.

    Args:
        args: the options of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.pipe = sd35.load(args.model, as_device(args.device), as_dtype(args.dtype))
        self.control = args.control
        self.options: dict[str, Any] = {
            "steps": args.steps,
            "guidance_scale": args.guidance_scale,
            "batch_size": args.batch_size,
            "seed": 0,
        }

    def draw(self, cases: Sequence[Case], group: "Group | None" = None) -> list[Image.Image]:
        """A picture of each case's prompt, steered by the drawings of a group where there is one."""
        control = None
        if group is not None:
            control = sd35.Control(self.control, list(group.drawings), group.kind)
        return self.pipe.generate([case.prompt for case in cases], control=control, **self.options).images


@dataclass(frozen=True)
class Group:
    """Cases, where their shapes are to be, and what the ControlNet reads."""

    cases: Sequence[Case]
    masks: Sequence[Mask]
    drawings: Sequence[Image.Image]
    kind: Any = "raw"


def group_of(name: str, count: int, drawer: Drawer) -> Group:
    """The cases of one line of the table."""
    if name != EDGES:
        cases = told(count) if name == TOLD else left_open(count, turned=name == TURNED)
        return Group(cases, [case.filled() for case in cases], [case.drawing() for case in cases])
    first = told(count)
    pictures = drawer.draw(first)
    cases = [replace(case, prompt=prompt) for case, prompt in zip(first, recoloured(first), strict=True)]
    return Group(cases, [shape_in(np.asarray(picture)) for picture in pictures], pictures, "canny")


def counts(
    cases: Sequence[Case],
    images: Sequence[Image.Image],
    upright: Sequence[Image.Image],
    masks: Sequence[Mask],
) -> list[str]:
    """Of pictures: how many lie on the outline, the median overlap, how many are right, and both."""
    judge = load_judge()
    overlaps = [overlap(shape_in(np.asarray(one)), mask) for one, mask in zip(images, masks, strict=True)]
    right = [
        judge.agrees(judge.read(np.asarray(one)), parse(case.prompt))
        for one, case in zip(upright, cases, strict=True)
    ]
    on = [value >= ON_OUTLINE for value in overlaps]
    both = sum(one and other for one, other in zip(on, right, strict=True))
    return [f"{sum(on)} of {len(cases)}", f"{np.median(overlaps):.2f}", str(sum(right)), str(both)]


def save_strip(path: Path, cases: Sequence[Case], images: Sequence[Image.Image]) -> None:
    """Save drawings, below each its prompt and the picture."""
    font, text = ImageFont.load_default(11), 34
    sheet = Image.new("RGB", (len(cases) * (SIDE + 8), 2 * SIDE + text + 8), "white")
    for number, (case, image) in enumerate(zip(cases, images, strict=True)):
        left = number * (SIDE + 8) + 4
        sheet.paste(case.drawing(), (left, 4))
        words = "\n".join(textwrap.wrap(case.prompt, 22))
        ImageDraw.Draw(sheet).multiline_text((left, SIDE + 8), words, "black", font, spacing=2)
        sheet.paste(image, (left, SIDE + text + 4))
    sheet.save(path, optimize=True)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw, count, print."""
    args = arguments().parse_args(argv)
    drawer, lines, strip = Drawer(args), [], []
    for name in args.group or GROUPS:
        group = group_of(name, args.prompts, drawer)
        cases, masks = group.cases, group.masks
        if name in (TOLD, OPEN):
            free = drawer.draw(cases)
            lines.append([name, "no", *counts(cases, free, free, masks)])
        steered = drawer.draw(cases, group)
        upright = [turned_back(one, case) for one, case in zip(steered, cases, strict=True)]
        lines.append([name, "yes", *counts(cases, steered, upright, masks)])
        strip += [*zip(group.cases, steered, strict=True)][:SHOWN] if name in (OPEN, TURNED) else []
    show(("prompts", "with a drawing", "on the outline", "median overlap", "right", "both"), lines)
    if args.strip is not None:
        save_strip(args.strip, *zip(*strip, strict=True))


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--control", default="outline", help="the ControlNet")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default=None, help="default: the device's own")
    parser.add_argument("--group", action="append", choices=GROUPS, help="may be repeated (default: all)")
    parser.add_argument("--prompts", type=int, default=100, help="of each kind")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance-scale", "--cfg", type=float, default=4.5)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--strip", type=Path, help="save drawings and pictures side by side")
    return parser


if __name__ == "__main__":
    main()
