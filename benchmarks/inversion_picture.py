"""Draw docs/inversion.png: pictures, those drawn from the noise that inverses find for them, and its errors.

python benchmarks/inversion_picture.py --output docs/inversion.png
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import flow
import sd35
from sd35.device import as_device
from sd35.noise import draw_noise, generators
from vae.image import to_pil

PROMPTS = (
    "a red circle above a blue square on a white background",
    "a large yellow star on the left on a black background",
    "a green triangle right of a purple ring on a white background",
    "a small orange cross at the top on a cyan background",
)
GAP, LINE = 8, 14
SHOWN: dict[str, dict[str, dict[str, Any]]] = {
    "euler": {"naive": {}, "exact": {"accuracy": 1e-2, "check": False}},
    "leapfrog": {"exact": {}},
}
"""How it is drawn, and how what was drawn is inverted."""
NORMAL = math.sqrt(2 / math.pi)  # mean magnitude of a standard normal number


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture and print what stands under its columns."""
    args = arguments().parse_args(argv)
    pipe = sd35.load(args.model, as_device(args.device), torch.float32)
    guidance = {"interval": (0.7, 1.0), "combine": flow.apg(1.0, 5.0)}
    velocity = pipe.velocity(list(PROMPTS), batch_size=len(PROMPTS), **guidance)
    sigmas = flow.sigmas(args.steps, preset="tailed")
    noise = draw_noise(generators(range(len(PROMPTS))), pipe.latents_shape(None, None)).to(pipe.device)

    columns: list[tuple[list[str], list[Image.Image]]] = []
    for solver, ways in SHOWN.items():
        drawn = flow.integrate(velocity, noise, sigmas, solver)
        columns.append((["drawn by", solver], pictures(pipe, drawn.x)))
        for method, options in ways.items():
            found = flow.inversion(
                velocity, drawn.x, sigmas, method, solver, companion=drawn.companion, **options
            )
            psnr = flow.closeness(found.noise, noise).total_psnr
            lines = [f"{found.report.method}, drawn again", f"noise {psnr:.1f} dB"]
            again = flow.solve(velocity, found.noise, sigmas, solver)
            columns.append((lines, pictures(pipe, again)))
            cost = f"{found.report.mean_evaluations:.0f} evaluations"
            columns.append((["error of the noise", cost], [errors(one) for one in found.noise - noise]))
            print(*lines, cost, sep=", ")
    sheet(columns).save(args.output)


def pictures(pipe: sd35.Pipeline, latents: Tensor) -> list[Image.Image]:
    """What latents are latents of."""
    return [to_pil(image) for image in pipe.decode(latents)]


def errors(error: Tensor) -> Image.Image:
    """The mean magnitude over the channels of (16, h, w): black is none, white half of the noise's own."""
    grey = (error.abs().mean(0) / (0.5 * NORMAL) * 255).clamp(0, 255).byte().cpu().numpy()
    return Image.fromarray(grey).resize((grey.shape[1] * 8, grey.shape[0] * 8), Image.Resampling.NEAREST)


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--output", type=Path, required=True, help="replaced if it exists")
    return parser


def sheet(columns: Sequence[tuple[Sequence[str], Sequence[Image.Image]]]) -> Image.Image:
    """Columns of pictures of one size, each with lines of text above it."""
    head = LINE * max(len(lines) for lines, _ in columns) + GAP
    width, height = (side + GAP for side in columns[0][1][0].size)
    rows = len(columns[0][1])
    whole = Image.new("RGB", (width * len(columns) + GAP, head + height * rows + GAP), "white")
    draw = ImageDraw.Draw(whole)
    for column, (lines, pictures) in enumerate(columns):
        left = GAP + column * width
        draw.multiline_text((left, GAP / 2), "\n".join(lines), fill="black", spacing=2)
        for row, picture in enumerate(pictures):
            framed = (left - 1, head + GAP / 2 + row * height - 1)
            draw.rectangle(
                (*framed, framed[0] + width - GAP + 1, framed[1] + height - GAP + 1), outline="grey"
            )
            whole.paste(picture, (left, head + GAP // 2 + row * height))
    return whole


if __name__ == "__main__":
    main()
