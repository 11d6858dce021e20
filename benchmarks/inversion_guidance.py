"""What guiding so that a generation can be inverted makes of the pictures, beside guiding everywhere.

    python benchmarks/inversion_guidance.py                 32 prompts, above σ = 0.7 and by 5 at most

Pictures of the embedded model, of held-out prompts other than those of `inversion.py`, read by the judge of
the tests.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from first_judge import load_judge

import flow
import sd35
from sd35.device import as_device
from sd35.noise import draw_noise, generators
from sd35.tiny.captions import held_out_in_turn, parse
from vae.image import to_pil


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw with both, judge, compare, print."""
    args = arguments().parse_args(argv)
    pipe, judge = sd35.load("tiny", as_device(args.device), torch.float32), load_judge()
    prompts = held_out_in_turn(args.prompts, seed=2)
    encodings, uncond = [pipe.encode_prompt(prompt) for prompt in prompts], pipe.encode_prompt("")
    table = flow.sigmas(args.steps, preset="tailed")
    limited = {"interval": tuple(args.guidance_interval), "combine": flow.apg(1.0, args.guidance_norm)}
    ends: dict[str, torch.Tensor] = {}
    for name, options in {"everywhere": {}, "limited": limited}.items():
        parts = []
        for start in range(0, len(prompts), args.batch_size):
            chosen = range(start, min(start + args.batch_size, len(prompts)))
            cond = [encodings[index] for index in chosen]
            velocity = sd35.GuidedVelocity(
                pipe.mmdit, cond, uncond, args.guidance_scale, batch_size=args.batch_size, **options
            )
            seeds = generators([1000 + index for index in chosen])
            noise = draw_noise(seeds, pipe.latents_shape(None, None)).to(pipe.device)
            parts.append(flow.solve(velocity, flow.on_grid(noise), table))
        ends[name] = torch.cat(parts)
        pictures = [np.asarray(to_pil(image)) for part in parts for image in pipe.decode(part)]
        found = zip(pictures, prompts, strict=True)
        right = sum(judge.agrees(judge.read(picture), parse(prompt)) for picture, prompt in found)
        print(f"guided {name}: {right} of {len(prompts)} right", flush=True)
    apart = flow.closeness(ends["limited"], ends["everywhere"]).psnr
    print(f"latents, one from the other: {apart.min():.1f} dB at least, {apart.median():.1f} in the median")


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, default=32, help="an even number")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance-scale", "--cfg", type=float, default=4.5)
    parser.add_argument("--guidance-interval", type=float, nargs=2, default=(0.7, 1.0))
    parser.add_argument("--guidance-norm", type=float, default=5.0)
    return parser


if __name__ == "__main__":
    main()
