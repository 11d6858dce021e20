"""Whether a step of a generation has several beginnings: each is solved from two starts.

    python benchmarks/inversion_roots.py --pictures 24 27 22 14     of those of inversion.py, by number

From the true state after each step, the state before it is searched from the velocity extrapolated from the
steps after, as `exact` does, and from the state after it. A search that converges far from the true state has
found another root. Prints a line for each picture.
"""

import argparse
from collections.abc import Sequence

import torch
from inversion import arguments, table_of
from torch import Tensor

import flow
import sd35
from flow.inverse.search import solve_step
from flow.path import rms
from sd35.device import as_device
from sd35.noise import draw_noise, generators
from sd35.tiny.captions import held_out_in_turn

ACCURACY = 1e-4
FAR = 100  # tolerances from the true state: another one


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw, solve every step twice, count."""
    args = options().parse_args(argv)
    pipe = sd35.load(args.model, as_device(args.device), torch.float32)
    prompts = held_out_in_turn(max(args.pictures) + 1, seed=1)
    velocity = pipe.velocity(
        [prompts[number] for number in args.pictures],
        guidance_scale=args.guidance_scale,
        batch_size=len(args.pictures),
        interval=tuple(args.guidance_interval),
        combine=flow.apg(1.0, args.guidance_norm),
    )
    noise = draw_noise(generators(args.pictures), pipe.latents_shape(None, None)).to(pipe.device)
    others, unsolved = counted(velocity, flow.on_grid(noise), table_of(args))
    for number, other, none in zip(args.pictures, others.tolist(), unsolved.tolist(), strict=True):
        print(f"picture {number}: of {2 * args.steps} searches {other} found another, {none} did not end")


def counted(velocity: sd35.GuidedVelocity, noise: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Of each picture, searches that found another beginning, and those that did not converge."""
    steps = list(flow.euler(velocity, noise, sigmas))
    states, levels = [noise, *(step.x for step in steps)], sigmas.tolist()
    others = unsolved = torch.zeros(len(noise), dtype=torch.long)
    for number in reversed(range(len(steps))):
        known = [
            (levels[after], steps[after].velocity.double())
            for after in (number + 2, number + 1)
            if after < len(steps)
        ]
        guess = None
        if known:
            (far, v_far), (near, v) = known[0], known[-1]
            share = (levels[number] - near) / (near - far) if near != far else 0.0
            guess = v + share * (v - v_far)

        def slope(x: Tensor, rows: Tensor, number: int = number) -> Tensor:
            return velocity.part(rows.tolist())(x.float(), sigmas[number]).double()

        tolerance = ACCURACY * levels[number] ** 1.5
        for start in (guess, None):
            h = levels[number + 1] - levels[number]
            within = torch.full((len(noise),), tolerance, device=noise.device)
            found = solve_step(slope, states[number + 1].double(), h, start, within, 30)
            converged = found.residual <= tolerance
            others = others + (converged & (rms(found.x - states[number].double()) > FAR * tolerance))
            unsolved = unsolved + ~converged
    return others, unsolved


def options() -> argparse.ArgumentParser:
    """Those of inversion.py, with numbers of its own."""
    parser = arguments()
    parser.description = __doc__
    parser.add_argument("--pictures", type=int, nargs="+", default=[24, 27, 22, 14])
    parser.set_defaults(schedule="tailed", guidance_interval=(0.7, 1.0), guidance_norm=5.0)
    return parser


if __name__ == "__main__":
    main()
