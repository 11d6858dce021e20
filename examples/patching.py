"""Carry what one prompt means into the picture of another, through one path of the text or the other.

    python examples/patching.py -o patched.png

A prompt reaches the transformer twice: as tokens that are attended to (`context_embedder`), and as a pooled
vector that modulates every block (`y_embedder`). Both pictures start from the same noise; then what the first
prompt gave is put in the place of what the second gives, in either path and in both. With both, nothing of
the second is left.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import sd35
from vae.image import to_pil

PATHS = {
    "tokens patched": ("context_embedder",),
    "pooled vector patched": ("y_embedder",),
    "both patched": ("context_embedder", "y_embedder"),
}
SIDE, GAP, TEXT = 160, 12, 40


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, patch, save the row of pictures, and print how far each is from the first."""
    args = arguments().parse_args(argv)
    pipe = sd35.load(args.model)

    def draw(prompt: str) -> torch.Tensor:
        return pipe.generate(prompt, seed=args.seed, steps=args.steps, guidance_scale=args.cfg).image

    with sd35.capture(pipe.mmdit, "context_embedder", "y_embedder", branch="cond") as taps:
        row = {args.source: draw(args.source)}
    row[args.target] = draw(args.target)
    for name, paths in PATHS.items():
        with sd35.patch(pipe.mmdit, dict.fromkeys(paths, taps), branch="cond"):
            row[name] = draw(args.target)
    first = row[args.source]
    for name, image in row.items():
        print(f"{float((image - first).square().mean().sqrt()):.3f}  {name}")
    sheet(row).save(args.output)
    print(args.output)


def sheet(row: dict[str, torch.Tensor]) -> Image.Image:
    """Pictures (1, 3, H, W) in [-1, 1] side by side, each above its name."""
    image = Image.new("RGB", (len(row) * (SIDE + GAP) + GAP, SIDE + 2 * GAP + TEXT), "white")
    painter, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for index, (name, picture) in enumerate(row.items()):
        x = GAP + index * (SIDE + GAP)
        tile = to_pil(picture[0]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.paste(tile, (x, GAP))
        painter.rectangle((x - 1, GAP - 1, x + SIDE, GAP + SIDE), outline=(200, 200, 200))
        painter.text((x, GAP + SIDE + 6), name.replace(" on ", "\non "), fill=(40, 40, 40), font=font)
    return image


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--source", default="a red circle on a white background", help="what is carried over")
    parser.add_argument("--target", default="a blue square on a black background", help="what it is put into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cfg", type=float, default=4.5, help="guidance scale (default 4.5)")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PNG")
    return parser


if __name__ == "__main__":
    main()
