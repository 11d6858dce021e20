"""What a network in bfloat16 leaves of the noise: what its rounding is, and what the way up makes of it.

    python benchmarks/inversion_rounding.py         8 pictures, drawn so that they invert

A velocity v rounds by what v(x + d) - v(x) in bfloat16 differs from the same in float32, for small d: what is
smooth of its error is the same on the way up as on the way down, and does no harm. A step leaves h times
that. How it grows to the top is read off two ways up in float32, from latents and from others beside them.
Prints the noise that rounding allows by this, in dB; `inversion.py --dtypes bfloat16` prints what is found.
"""

import argparse
import math
from collections.abc import Sequence

import torch
from inversion import Batch, arguments, batches, table_of
from torch import Tensor

import flow
import sd35
from flow.path import rms
from sd35.device import as_device
from sd35.tiny.captions import held_out_in_turn

NEAR, BESIDE = 1e-2, 1e-4
"""Lengths of d, above the rounding of x itself, and of what is added to the latents, root mean square."""


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw, measure, print."""
    args = options().parse_args(argv)
    device, sigmas = as_device(args.device), table_of(args)
    rounded, full = (sd35.load(args.model, device, dtype) for dtype in (torch.bfloat16, torch.float32))
    prompts = held_out_in_turn(args.prompts, seed=1)
    units, limits = [], []
    pairs = zip(batches(rounded, prompts, args), batches(full, prompts, args), strict=True)
    for rough, smooth in pairs:
        unit, left = rounding(rough, smooth, sigmas)
        units.append(unit)
        limits.append((rough.noise.max() - rough.noise.min()) / left)
    found = 20 * torch.cat(limits).log10()
    unit = math.log2(float(torch.cat(units).mean()))
    print(f"a velocity in bfloat16 rounds by 2^{unit:.1f} of itself, and that allows noise of ", end="")
    print(f"{found.min():.1f} dB at least, {found.median():.1f} in the median, {found.max():.1f} at most")


def rounding(rough: Batch, smooth: Batch, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """How a velocity rounds, relative to itself, and what of it is in the noise in the end: (B,), (B,)."""
    growth = grown(smooth, sigmas)
    left, units = torch.zeros(len(rough.noise), dtype=torch.float64), []
    near = NEAR * torch.randn(rough.noise.shape, generator=torch.Generator().manual_seed(0)).to(rough.noise)
    x, levels = rough.noise, sigmas.tolist()
    for step in flow.euler(rough.velocity, rough.noise, sigmas):
        here, there = (rough.velocity(x + d, step.sigma) for d in (0 * near, near))
        same = smooth.velocity(x + near, step.sigma) - smooth.velocity(x, step.sigma)
        noise = rms(there - here - same) / math.sqrt(2)
        units.append(noise / rms(here))
        h = levels[step.number + 1] - levels[step.number]
        left += (h * noise * growth[step.number]).double().cpu().square()
        x = step.x
    return torch.stack(units).mean(0).cpu(), left.sqrt()


def grown(smooth: Batch, sigmas: Tensor) -> list[Tensor]:
    """By step, how many times what is left after inverting it is in the noise in the end, (B,)."""
    data = flow.solve(smooth.velocity, smooth.noise, sigmas)
    other = data + BESIDE * torch.randn(data.shape, generator=torch.Generator().manual_seed(1)).to(data)
    ways = (flow.inverting(smooth.velocity, one, sigmas, check=False) for one in (data, other))
    apart = [rms(one.x - two.x) for one, two in zip(*ways, strict=True)]
    return [apart[-1] / one for one in reversed(apart)]


def options() -> argparse.ArgumentParser:
    """Those of inversion.py, with numbers of its own."""
    parser = arguments()
    parser.description = __doc__
    parser.set_defaults(prompts=8, schedule="tailed", guidance_interval=(0.7, 1.0), guidance_norm=5.0)
    return parser


if __name__ == "__main__":
    main()
