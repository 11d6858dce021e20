"""From a prompt to a picture with nothing but the parts: the whole of Stable Diffusion 3.5 in one sight.

    python examples/prompt_to_pixel.py "a red circle on a white background" -o circle.png

Read this first. `pipe.generate` draws the same picture to the last bit, and adds what a user needs around it:
settings that are checked and saved, batches, variants of guidance, errors that name the step.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

import flow
import weights
from vae.image import to_pil


@torch.no_grad()
def draw(
    prompt: str,
    model: str,
    *,
    seed: int = 0,
    steps: int = 28,
    guidance_scale: float = 4.5,
    guided_from: float = 0.7,
    side: int = 128,
) -> Tensor:
    """Draw one picture, (1, 3, side, side) in [-1, 1].

    The embedded model is guided where sigma is `guided_from` or more; 0 is everywhere, as for SD3.5-large.
    """
    text = weights.load_textenc(model, dtype=torch.float32)  # CLIP-L, CLIP-G and T5 with their tokenizers
    mmdit = weights.load_mmdit(model, dtype=torch.float32)  # the transformer
    vae = weights.load_vae(model, dtype=torch.float32)  # from 16 channels at an eighth of the size to pixels

    # Each prompt becomes tokens that are attended to, and one vector that modulates every block.
    wanted, unwanted = text.encode(prompt), text.encode("")
    context = torch.cat([wanted.context, unwanted.context])  # (2, M, 4096)
    pooled = torch.cat([wanted.pooled, unwanted.pooled])  # (2, 2048)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        """Where the state moves, away from what the empty prompt would draw (classifier-free guidance)."""
        if sigma < guided_from:
            return mmdit(x, sigma, wanted.context, wanted.pooled)
        cond, uncond = mmdit(x.repeat(2, 1, 1, 1), sigma.repeat(2), context, pooled).split(1)
        return flow.guide(cond, uncond, guidance_scale)

    # Noise on the CPU, where a seed means the same on every machine.
    shape = (1, mmdit.config.channels, side // vae.config.factor, side // vae.config.factor)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    # Follow the velocity from noise (sigma 1) to data (sigma 0), a straight line a step.
    for step in flow.euler(velocity, x, flow.sigmas(steps)):
        x = step.x
    return vae.decode(x)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture that the arguments ask for, and save it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompt")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--cfg", type=float, default=4.5, help="guidance scale (default 4.5)")
    parser.add_argument(
        "--guided-from", type=float, default=0.7, metavar="SIGMA", help="0 for SD3.5-large (default 0.7)"
    )
    parser.add_argument("--side", type=int, default=128, help="of the picture, in pixels (default 128)")
    parser.add_argument("-o", "--output", required=True, metavar="PNG")
    args = parser.parse_args(argv)
    image = draw(
        args.prompt,
        args.model,
        seed=args.seed,
        steps=args.steps,
        guidance_scale=args.cfg,
        guided_from=args.guided_from,
        side=args.side,
    )
    to_pil(image).save(args.output)
    print(args.output)


if __name__ == "__main__":
    main()
