"""What is left of the noise when one begins at a picture's file: encoding, rounding, compressing, resizing.

    python benchmarks/inversion_pictures.py                         16 pictures, drawn so that they invert
    python benchmarks/inversion_pictures.py --guidance-interval 0 1 --guidance-norm 1e9    guided everywhere

Cosine with the noise that a picture was drawn from, and PSNR over its range, by the naive inverse and by the
exact one, from latents of every kind of file. Prints Markdown.
"""

import argparse
from collections import deque
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from inversion import arguments, batches, progress, table_of
from PIL import Image
from rows import Row, show
from torch import Tensor

import flow
import sd35
from sd35.device import as_device
from sd35.tiny.captions import held_out_in_turn
from vae.image import to_uint8
from vae.refine import refine

METHODS: dict[str, dict[str, Any]] = {"naive": {}, "exact": {"accuracy": 1e-2, "check": False}}
SOLVED = ("latents", "16 bits", "8 bits", "8 bits, refined")
"""What the exact inverse is tried on; on the others it is not nearer than naive."""
CROPPED = 1 / 16  # of the side, from each edge


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw, spoil, encode, invert, print."""
    args = options().parse_args(argv)
    pipe = sd35.load(args.model, as_device(args.device), torch.float32)
    prompts = held_out_in_turn(args.prompts, seed=1)
    sigmas = table_of(args)
    latents: dict[str, Row] = {}
    noise: dict[tuple[str, str], Row] = {}
    for batch in batches(pipe, prompts, args):
        drawn = flow.solve(batch.velocity, batch.noise, sigmas)
        for name, one in stages(pipe, drawn, args.refine_steps).items():
            latents.setdefault(name, Row()).add(one, drawn, 0)
            for method, given in METHODS.items():
                if method == "naive" or name in SOLVED:
                    back = flow.inversion(batch.velocity, one, sigmas, method, **given)
                    row = noise.setdefault((name, method), Row())
                    row.add(back.noise, batch.noise, back.report.mean_evaluations)
    print(f"\n## From a picture, float32, {len(prompts)} pictures, {args.steps} steps\n")
    cells = []
    for name, row in latents.items():
        cells.append([name, row.cells(1)[2].replace("equal bits", "")])
        for method in METHODS:
            found = noise[name, method].cells(1) if (name, method) in noise else [""] * 7
            cells[-1] += [found[6][:5], found[4]]
    heads = [f"{method}: {head}" for method in METHODS for head in ("cosine", "PSNR dB, median")]
    show(["from", "latents PSNR dB", *heads], cells)


def stages(pipe: sd35.Pipeline, drawn: Tensor, refine_steps: int) -> dict[str, Tensor]:
    """The latents as they were drawn, and those of the decoded picture in every kind of file."""
    image = pipe.decode(drawn).clamp(-1, 1)
    files = {
        "16 bits": ((image + 1) / 2 * 65535).round() / 65535 * 2 - 1,
        "8 bits": to_uint8(image).to(image) / 127.5 - 1,
        "JPEG 90": each(image, lambda one: jpeg(one, 90)),
        "JPEG 75": each(image, lambda one: jpeg(one, 75)),
        "half the size and back": each(image, lambda one: resized(one, one.width // 2)),
        "cropped by 1/16 and back": each(image, cropped),
    }
    found = {"latents": drawn} | {name: pipe.encode(picture) for name, picture in files.items()}
    best = deque(refine(pipe.vae, files["8 bits"], found["8 bits"], steps=refine_steps), maxlen=1).pop()
    progress(f"refining gained {float(best.gain.mean()):.1f} dB in the picture")
    return found | {"8 bits, refined": best.latents}


def each(image: Tensor, change: Any) -> Tensor:
    """Pictures (B, 3, H, W) through a change of 8-bit ones."""
    pictures = [Image.fromarray(one) for one in to_uint8(image).permute(0, 2, 3, 1).cpu().numpy()]
    changed = np.stack([np.asarray(change(one)) for one in pictures])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).to(image) / 127.5 - 1


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    """Through a file."""
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def resized(picture: Image.Image, side: int) -> Image.Image:
    """To another size and back."""
    small = picture.resize((side, side), Image.Resampling.LANCZOS)
    return small.resize(picture.size, Image.Resampling.LANCZOS)


def cropped(picture: Image.Image) -> Image.Image:
    """Without its edges, and brought back to its size."""
    width, height = picture.size
    across, down = round(CROPPED * width), round(CROPPED * height)
    inner = picture.crop((across, down, width - across, height - down))
    return inner.resize(picture.size, Image.Resampling.LANCZOS)


def options() -> argparse.ArgumentParser:
    """Those of inversion.py, with numbers of its own."""
    parser = arguments()
    parser.description = __doc__
    parser.add_argument("--refine-steps", type=int, default=30)
    parser.set_defaults(prompts=16, schedule="tailed", guidance_interval=(0.7, 1.0), guidance_norm=5.0)
    return parser


if __name__ == "__main__":
    main()
