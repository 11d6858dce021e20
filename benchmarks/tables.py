"""How near Euler's method comes to the flow on each table of noise levels, at equal evaluations.

    python benchmarks/tables.py                                          guided everywhere, scale 4.5
    python benchmarks/tables.py --guidance-interval 0.7 1 --guidance-norm 5      as docs/inversion.md guides

Columns: the presets of `flow.sigmas`, and tables calibrated on other prompts: from the acceleration, and by
dynamic programming (for the steps of --programme alone, which takes that many times as long), each with and
without the bound of 0.4 on σ' / σ. Last, `ab2` on the table from the acceleration. Median PSNR in dB of the
latents to the converged solution, RK4 on a tailed table of --reference-steps. Prints Markdown.
"""

import argparse
from collections.abc import Sequence

import torch
from inversion import arguments, batches
from rows import show
from torch import Tensor

import flow
import sd35
from flow.calibrate import acceleration, spread
from sd35.device import as_device
from sd35.noise import draw_noise, generators
from sd35.tiny.captions import held_out_in_turn, held_out_prompts

PRESETS = ("reference", "linear", "tailed")
BOUND = 0.4


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Calibrate, solve, compare, print."""
    args = options().parse_args(argv)
    pipe = sd35.load(args.model, as_device(args.device), torch.float32)
    prompts = held_out_in_turn(args.prompts, seed=1)
    tables = calibrated(pipe, args)
    found: dict[tuple[str, int], list[Tensor]] = {}
    halved: list[Tensor] = []
    for batch in batches(pipe, prompts, args):
        fine = flow.sigmas(args.reference_steps, preset="tailed")
        true = flow.solve(batch.velocity, batch.noise, fine, "rk4")
        coarse = flow.sigmas(args.reference_steps // 2, preset="tailed")
        halved.append(flow.closeness(flow.solve(batch.velocity, batch.noise, coarse, "rk4"), true).psnr)
        for steps in args.budgets:
            for name in PRESETS:
                tables[name, steps] = flow.sigmas(steps, preset=name)
            for (name, count), table in tables.items():
                if count == steps:
                    end = flow.solve(batch.velocity, batch.noise, table)
                    found.setdefault((name, steps), []).append(flow.closeness(end, true).psnr)
            end = flow.solve(batch.velocity, batch.noise, tables["acceleration", steps], "ab2")
            found.setdefault(("ab2, acceleration", steps), []).append(flow.closeness(end, true).psnr)
    names = list(dict.fromkeys(name for name, _ in found))
    print(f"\n## To the converged solution, {len(prompts)} prompts, guidance {args.guidance_scale:g}\n")
    print(f"The solution, from itself with half the steps: {torch.cat(halved).median():.0f} dB.\n")
    cells = [
        [
            str(steps),
            *(
                f"{torch.cat(found[name, steps]).median():.1f}" if (name, steps) in found else ""
                for name in names
            ),
        ]
        for steps in args.budgets
    ]
    show(["evaluations", *names], cells)


def calibrated(pipe: sd35.Pipeline, args: argparse.Namespace) -> dict[tuple[str, int], Tensor]:
    """The tables that are made for this flow, from prompts that are not judged."""
    prompts = held_out_prompts(args.starts, shapes=2, seed=3)
    (batch,) = batches(pipe, prompts, argparse.Namespace(**vars(args) | {"batch_size": args.starts}))
    noise = draw_noise(generators(range(2000, 2000 + args.starts)), batch.noise.shape[1:]).to(pipe.device)
    fine = flow.sigmas(args.teacher_steps, preset="tailed")
    velocities = [step.velocity for step in flow.euler(batch.velocity, noise, fine)]
    profile = acceleration(velocities, fine)
    found: dict[tuple[str, int], Tensor] = {}
    for bound in (None, BOUND):
        suffix = "" if bound is None else f", {bound:g}"
        for steps in args.budgets:
            found["acceleration" + suffix, steps] = spread(profile, fine, steps, bound).float()
        for steps in args.programme:
            made = flow.calibrate(batch.velocity, noise, steps, fine=fine, least_ratio=bound)
            found["programme" + suffix, steps] = made.table
            print(f"{steps}{suffix}: " + " ".join(f"{level:.4g}" for level in made.sigmas), flush=True)
    return found


def options() -> argparse.ArgumentParser:
    """Those of inversion.py, with numbers of its own."""
    parser = arguments()
    parser.description = __doc__
    parser.add_argument("--budgets", type=int, nargs="+", default=[4, 6, 8, 10, 14, 20, 28])
    parser.add_argument("--programme", type=int, nargs="*", default=[8])
    parser.add_argument("--starts", type=int, default=2, help="that a table is made from")
    parser.add_argument("--teacher-steps", type=int, default=50)
    parser.set_defaults(prompts=4, batch_size=4, reference_steps=40)
    return parser


if __name__ == "__main__":
    main()
