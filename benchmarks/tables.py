"""How near solvers come to the flow on each table of noise levels, at equal evaluations, and back again.

    python benchmarks/tables.py                                          guided everywhere, scale 4.5
    python benchmarks/tables.py --guidance-interval 0.7 1                as the embedded model is by itself
    python benchmarks/tables.py --guidance-interval 0.7 1 --guidance-norm 5      as docs/calibration.md guides

Columns: Euler's method on the presets of `flow.sigmas`, and on tables calibrated on other prompts: from the
acceleration, and by dynamic programming (for the steps of --programme alone, which takes that many times as
long), each with and without the bound of 0.4 on σ' / σ. Then other solvers on the table from the
acceleration, of as many steps as the evaluations allow; and one on a table that was searched for it, for the
budgets of --searched. Median PSNR in dB of the latents to the converged solution, RK4 on a tailed table of
--reference-steps. Then the noise found from the latents, for the budgets of --inverted, where a solver can be
inverted. Prints Markdown.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from inversion import Batch, arguments, batches, steps_within
from rows import Row, show
from torch import Tensor

import flow
import sd35
from flow.calibrate import acceleration, pinned, spread
from flow.solvers.runge_kutta import SLOPES
from sd35.device import as_device
from sd35.noise import draw_noise, generators
from sd35.tiny.captions import held_out_in_turn

PRESETS = ("reference", "linear", "tailed")
OTHERS = ("ab2", "fireflow", "leapfrog", "midpoint")
SEARCHED = "fireflow"
BOUND = 0.4
ACCURACY = 1e-3
"""Of the exact inverse of Euler's method."""


class Way(NamedTuple):
    """From noise to data."""

    table: Tensor
    solver: str = "euler"

    @property
    def can_be_undone(self) -> bool:
        """Whether there is an inverse that returns."""
        return self.solver in SLOPES or flow.SOLVERS[self.solver].reversible


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Calibrate, solve, compare, print."""
    args = options().parse_args(argv)
    pipe = sd35.load(args.model, as_device(args.device), torch.float32)
    prompts = held_out_in_turn(args.prompts, seed=1)
    ways = {
        (name, steps): Way(flow.sigmas(steps, preset=name)) for name in PRESETS for steps in args.budgets
    } | calibrated(pipe, args)
    ends, halved = {key: Row() for key in ways}, Row()
    back = {key: Row() for key, way in ways.items() if key[1] in args.inverted and way.can_be_undone}
    for batch in batches(pipe, prompts, args):
        true = converged(batch, args.reference_steps)
        halved.add(converged(batch, args.reference_steps // 2), true, 0)
        for key, way in ways.items():
            end = flow.integrate(batch.velocity, batch.noise, way.table, way.solver)
            ends[key].add(end.x, true, 0)
            if key in back:
                noise, evaluations = inverted(batch, way, end)
                back[key].add(noise, batch.noise, evaluations)
    names = list(dict.fromkeys(name for name, _ in ways))
    print(f"\n## To the converged solution, {len(prompts)} prompts, guidance {args.guidance_scale:g}\n")
    print(f"The solution, from itself with half the steps: {halved.closeness.psnr.median():.0f} dB.\n")
    medians = {key: f"{row.closeness.psnr.median():.1f}" for key, row in ends.items()}
    cells = [[str(steps), *(medians.get((name, steps), "") for name in names)] for steps in args.budgets]
    show(["evaluations", *names], cells)
    if not back:
        return
    print(f"\n## The noise found, by exact at {ACCURACY:g}, or leapfrog's by undoing\n")
    heads = ["evaluations", "table", "x naive", "noise PSNR dB", "least", "median", "most", "cosine"]
    show(heads, [[str(cost), name, *row.cells(cost)[1:]] for (name, cost), row in back.items()])


def converged(batch: Batch, steps: int) -> Tensor:
    """The solution of the ODE."""
    return flow.solve(batch.velocity, batch.noise, flow.sigmas(steps, preset="tailed"), "rk4")


def inverted(batch: Batch, way: Way, end: flow.Solution) -> tuple[Tensor, float]:
    """The noise that is found from where a way ended, and the evaluations that it took."""
    if end.companion is not None:
        found = flow.inversion(batch.velocity, end.x, way.table, solver=way.solver, companion=end.companion)
    else:
        options = {"accuracy": ACCURACY, "check": False}
        found = flow.inversion(batch.velocity, end.x, way.table, "exact", way.solver, **options)
    return found.noise, found.report.mean_evaluations


def calibrated(pipe: sd35.Pipeline, args: argparse.Namespace) -> dict[tuple[str, int], Way]:
    """What is made for this flow, from prompts that are not judged."""
    prompts = held_out_in_turn(args.starts, seed=3)
    (batch,) = batches(pipe, prompts, argparse.Namespace(**vars(args) | {"batch_size": args.starts}))
    noise = draw_noise(generators(range(2000, 2000 + args.starts)), batch.noise.shape[1:]).to(pipe.device)
    windows = [tuple(args.guidance_interval)] if args.guidance_interval else []
    fine = pinned(flow.sigmas(args.teacher_steps, preset="tailed"), windows)
    velocities = [step.velocity for step in flow.euler(batch.velocity, noise, fine)]
    profile = acceleration(velocities, fine)
    found: dict[tuple[str, int], Way] = {}
    for bound in (None, BOUND):
        suffix = "" if bound is None else f", {bound:g}"
        for steps in args.budgets:
            found["acceleration" + suffix, steps] = Way(spread(profile, fine, steps, bound, windows).float())
        for steps in args.programme:
            made = flow.calibrate(batch.velocity, noise, steps, fine=fine, least_ratio=bound, windows=windows)
            found["optimal_steps" + suffix, steps] = Way(made.table)
            told(f"optimal_steps{suffix}, {steps}", made.table)
    for budget in args.budgets:
        for solver in OTHERS:
            table = spread(profile, fine, steps_within(budget, flow.SOLVERS[solver]), None, windows)
            found[f"acceleration, {solver}", budget] = Way(table.float(), solver)
        if budget in args.searched:
            made = flow.calibrate(
                batch.velocity,
                noise,
                steps_within(budget, flow.SOLVERS[SEARCHED]),
                method="search",
                solver=SEARCHED,
                fine=fine,
                windows=windows,
            )
            found[f"search, {SEARCHED}", budget] = Way(made.table, SEARCHED)
            told(f"search, {budget}, in {made.evaluations} evaluations", made.table)
    return found


def told(name: str, table: Tensor) -> None:
    """Print a table of noise levels."""
    print(f"{name}: " + " ".join(f"{level:.4g}" for level in table.tolist()), flush=True)


def options() -> argparse.ArgumentParser:
    """Those of inversion.py, with numbers of its own."""
    parser = arguments()
    parser.description = __doc__
    parser.add_argument("--budgets", type=int, nargs="+", default=[4, 6, 8, 10, 14, 20, 28])
    parser.add_argument("--programme", type=int, nargs="*", default=[8])
    parser.add_argument("--searched", type=int, nargs="*", default=[4, 6, 8, 10, 14])
    parser.add_argument(
        "--inverted", type=int, nargs="*", default=[14], help="evaluations whose noise is found"
    )
    parser.add_argument("--starts", type=int, default=4, help="that a table is made from")
    parser.add_argument("--teacher-steps", type=int, default=100)
    parser.set_defaults(prompts=8, batch_size=8, reference_steps=40)
    return parser


if __name__ == "__main__":
    main()
