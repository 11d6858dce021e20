"""Draw docs/inversion.png: pictures, and what is drawn from the noise that three inverses find for them.

python benchmarks/inversion_picture.py --output docs/inversion.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

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


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture and print what stands under its columns."""
    args = arguments().parse_args(argv)
    pipe = sd35.load(args.model, as_device(args.device), torch.float32)
    velocity = pipe.velocity(list(PROMPTS), batch_size=len(PROMPTS))
    sigmas = flow.sigmas(args.steps)
    noise = draw_noise(generators(range(len(PROMPTS))), pipe.latents_shape(None, None)).to(pipe.device)

    columns: list[tuple[list[str], Tensor]] = []
    for solver, ways in (("euler", ("naive", "exact")), ("reversible_heun", ("exact",))):
        drawn = flow.integrate(velocity, noise, sigmas, solver)
        columns.append((["drawn by", solver.replace("_", " ")], drawn.x))
        for method in ways:
            found = flow.inversion(velocity, drawn.x, sigmas, method, solver, companion=drawn.companion)
            psnr = flow.closeness(found.noise, noise).total_psnr
            lines = [found.report.method, f"noise {psnr:.1f} dB", f"{found.report.evaluations} evaluations"]
            columns.append((lines, flow.solve(velocity, found.noise, sigmas, solver)))
            print(*lines, sep=", ")
    sheet([(lines, [to_pil(image) for image in pipe.decode(x)]) for lines, x in columns]).save(args.output)


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
