"""How well generations are inverted, and how accurate the solvers are, on a model of yours.

    python benchmarks/inversion.py                                  every table, 64 prompts, as Markdown
    python benchmarks/inversion.py --prompts 8 --tables inverse     a quick look
    python benchmarks/inversion.py --schedule tailed --rows naive exact leapfrog --accuracies 1e-2 1e-3

Tables: `inverse` (noise recovered, every method, each dtype of --dtypes), `forward` (distance of every solver
from the converged solution at equal evaluations). inversion_pictures.py begins at pictures.
PSNR is over all samples, its range max - min of the true values; least, median and most are of the samples'
own. Evaluations are those of a guided velocity, two passes of the transformer, and a mean over samples.
`missed` counts samples that did not converge in some step, `may fold` those in which some step seemed not to
be one-to-one. Of `exact, checked`, as it is by default: `poor` counts samples whose noise it says is worth
less than 40 dB, `overrated` those whose noise was not worth what it said. (The others do not say.)
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rows import Counted, Row, show
from torch import Tensor

import flow
import sd35
from sd35.device import as_device, as_dtype
from sd35.noise import draw_noise, generators
from sd35.settings import settings_of
from sd35.tiny.captions import held_out_in_turn

TABLES = ("inverse", "forward")
BUDGETS = (8, 14, 28, 56)
EULERS, FEWER = 28, 14
"""Of the budgets: the line under the table says who reaches Euler's accuracy with half the evaluations."""
REVERSIBLE = [name for name, solver in flow.SOLVERS.items() if solver.reversible]
BUDGETED = [
    name for name, solver in flow.SOLVERS.items() if solver.evaluations is not None and not solver.stochastic
]

APPROXIMATE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "naive, flipped Euler": ("naive", "euler", {}),
    "Uni-Inv": ("uni_inv", "euler", {}),
    "FireFlow": ("fireflow", "euler", {}),
    "midpoint (RF-Solver)": ("rf_solver", "euler", {}),
    "flipped Heun": ("naive", "heun", {}),
    "fixed point, 4 a step (AIDI)": ("fixed_point", "euler", {"iterations": 4}),
    "its average (ReNoise)": ("fixed_point", "euler", {"iterations": 4, "average": True}),
}
"""By the name in the table: method, solver, options. All undo the same generation, Euler's."""
ACCURACIES = (3e-2, 1e-2, 1e-3, 1e-4, 1e-5)
ROUNDED_ACCURACIES = (1e-2, 1e-4)
"""In less than float32, where rounding is the floor under every method and more accuracy buys nothing."""
POOR = 40
TIMES = (2, 5, 8)
"""Of naive's evaluations: what the exact inverse is granted in the line under its table."""


class Batch(NamedTuple):
    """Some of the prompts, ready to be followed."""

    velocity: Counted
    other: Counted  # the same prompts, one place further: those of other pictures
    scaled: Counted  # the same prompts with half a point less of guidance
    noise: Tensor


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables that were asked for."""
    args = arguments().parse_args(argv)
    prompts = held_out_in_turn(args.prompts, seed=1)
    for dtype in args.dtypes if "inverse" in args.tables else ():
        pipe = sd35.load(args.model, as_device(args.device), as_dtype(dtype))
        print(f"\n## Noise recovered, {dtype}, {args.prompts} prompts, {args.steps} steps, ", end="")
        print(f"guidance {args.guidance_scale:g}\n")
        inverse_table(pipe, prompts, args)
    pipe = sd35.load(args.model, as_device(args.device), torch.float32)
    if "forward" in args.tables:
        forward_table(pipe, prompts[: args.forward_prompts], args)


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of table inverse")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--forward-prompts", type=int, help="of those, for table forward; default: all")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--side", type=int, help="of the pictures, in pixels; default: the model's")
    parser.add_argument(
        "--schedule", default="reference", help="of sd35 list schedules, or a calibrated file"
    )
    parser.add_argument("--accuracies", type=float, nargs="+", help="of exact; default: those of the dtype")
    parser.add_argument("--rows", nargs="+", default=[""], help="of table inverse: how their names begin")
    parser.add_argument("--guidance-scale", "--cfg", type=float, default=4.5)
    parser.add_argument(
        "--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="default: all"
    )
    parser.add_argument("--guidance-norm", type=float, help="the most that guidance adds, of flow.apg(1, it)")
    parser.add_argument("--reference-steps", type=int, default=100, help="of RK4, for the converged solution")
    return parser


def batches(pipe: sd35.Pipeline, prompts: Sequence[str], args: argparse.Namespace) -> Iterator[Batch]:
    """The prompts in batches, with the noise of seeds 0, 1, 2, ..."""
    encodings = [pipe.encode_prompt(prompt) for prompt in prompts]
    uncond = pipe.encode_prompt("")
    for start in range(0, len(prompts), args.batch_size):
        chosen = range(start, min(start + args.batch_size, len(prompts)))

        def velocity(shift: int = 0, less: float = 0.0, chosen: range = chosen) -> Counted:
            cond = [encodings[(index + shift) % len(encodings)] for index in chosen]
            given: dict[str, Any] = {"batch_size": args.batch_size}
            if args.guidance_interval is not None:
                given["interval"] = tuple(args.guidance_interval)
            if args.guidance_norm is not None:
                given["combine"] = flow.apg(1.0, args.guidance_norm)
            scale = args.guidance_scale - less
            return Counted(sd35.GuidedVelocity(pipe.mmdit, cond, uncond, scale, **given))

        noise = draw_noise(generators(chosen), pipe.latents_shape(args.side, args.side)).to(pipe.device)
        yield Batch(velocity(), velocity(shift=1), velocity(less=0.5), flow.on_grid(noise))
        progress(f"{chosen.stop} of {len(prompts)} prompts")


def table_of(args: argparse.Namespace) -> Tensor:
    """The noise levels that are asked for."""
    return settings_of({"prompts": "", "schedule": args.schedule, "steps": args.steps}).sigmas


def inverse_table(pipe: sd35.Pipeline, prompts: Sequence[str], args: argparse.Namespace) -> None:
    """Print how near every method comes to the noise."""
    sigmas, full = table_of(args), pipe.dtype == torch.float32
    rows: dict[str, Row] = {}
    for batch in batches(pipe, prompts, args):
        data = flow.solve(batch.velocity, batch.noise, sigmas)

        def undo(
            name: str,
            method: str,
            solver: str = "euler",
            velocity: Counted = batch.velocity,
            batch: Batch = batch,
            data: Tensor = data,
            **options: Any,
        ) -> None:
            if not name.startswith(tuple(args.rows)):
                return
            found = flow.inversion(velocity, data, sigmas, method, solver, **options)
            row = rows.setdefault(name, Row())
            row.add(found.noise, batch.noise, found.report.mean_evaluations)
            row.missed += len(missed(found.report))
            row.suspected += len(found.report.ambiguous)
            true = flow.closeness(found.noise, batch.noise).psnr.tolist()
            row.overrated += sum(db < told - 1 for db, told in zip(true, found.decibels, strict=False))
            row.poor += sum(told < POOR for told in found.decibels)

        for name, (method, solver, options) in APPROXIMATE.items():
            undo(name, method, solver, **options)
        for accuracy in args.accuracies or (ACCURACIES if full else ROUNDED_ACCURACIES):
            undo(f"exact, accuracy {accuracy:g}", "exact", accuracy=accuracy, check=False)
        undo("exact, checked", "exact")
        if full:
            undo("exact, of another prompt", "exact", velocity=batch.other, accuracy=1e-3)
            undo("exact, of a guidance scale 0.5 less", "exact", velocity=batch.scaled, accuracy=1e-3)
        for solver in REVERSIBLE:
            if not solver.startswith(tuple(args.rows)):
                continue
            ended = flow.integrate(batch.velocity, batch.noise, sigmas, solver)
            undo(solver, "exact", solver, data=ended.x, companion=ended.companion)
    cells = [
        [
            name,
            *row.cells(args.steps),
            *(str(n or "") for n in (row.missed, row.suspected, row.poor, row.overrated)),
        ]
        for name, row in rows.items()
    ]
    heads = ["inverse", "evaluations", "x naive", "noise PSNR dB", "least", "median", "most", "cosine"]
    heads += ["missed", "may fold", "poor", "overrated"]
    show(heads, cells)
    if full and args.accuracies is None and args.rows == [""]:
        best = "; ".join(within_budgets(rows, args.steps))
        print(f"\nexact at best, by the multiple of naive's evaluations: {best}.")


def within_budgets(rows: Mapping[str, Row], naive: int) -> Iterator[str]:
    """What the exact inverse reached at best within each multiple of the naive evaluations."""
    exact = {f"exact, accuracy {accuracy:g}": accuracy for accuracy in ACCURACIES}
    for times in TIMES:
        affordable = [
            (rows[name].closeness.total_psnr, accuracy)
            for name, accuracy in exact.items()
            if rows[name].cost <= times * naive
        ]
        best = "{:.1f} dB (accuracy {:g})".format(*max(affordable)) if affordable else "nothing"
        yield f"{times} x: {best}"


def missed(report: flow.Report) -> set[int]:
    """The samples of a batch that did not converge in some step."""
    return {
        sample for step in report.steps for sample, converged in enumerate(step.converged) if not converged
    }


def forward_table(pipe: sd35.Pipeline, prompts: Sequence[str], args: argparse.Namespace) -> None:
    """Print how near every solver comes to the solution of the ODE, at equal evaluations."""
    ends: dict[tuple[str, int], Row] = {}
    halved = Row()
    for batch in batches(pipe, prompts, args):
        true = flow.solve(batch.velocity, batch.noise, flow.sigmas(args.reference_steps), "rk4")
        half = flow.solve(batch.velocity, batch.noise, flow.sigmas(args.reference_steps // 2), "rk4")
        halved.add(half, true, 0)
        for name in BUDGETED:
            for budget in BUDGETS:
                steps = steps_within(budget, flow.SOLVERS[name])
                batch.velocity.calls = 0
                end = flow.solve(batch.velocity, batch.noise, flow.sigmas(steps), name)
                assert batch.velocity.calls <= budget, (name, steps, batch.velocity.calls)
                ends.setdefault((name, budget), Row()).add(end, true, batch.velocity.calls)
        for rtol in (1e-2, 1e-3):
            batch.velocity.calls = 0
            end = flow.solve(batch.velocity, batch.noise, flow.sigmas(1), "dopri5", rtol=rtol, atol=rtol / 10)
            ends.setdefault((f"dopri5, rtol {rtol:g}", 0), Row()).add(end, true, batch.velocity.calls)
    converged = halved.closeness.total_psnr
    print(f"\n## PSNR in dB to the converged solution, float32, {len(prompts)} prompts\n")
    print(f"RK4 with {args.reference_steps} steps, {converged:.0f} dB from itself with half as many.\n")
    show(
        ["solver", "order", *(f"{budget} evaluations" for budget in BUDGETS)],
        [
            [name, str(flow.SOLVERS[name].order), *(ends[name, budget].cells(1)[2] for budget in BUDGETS)]
            for name in BUDGETED
        ],
    )
    euler = ends["euler", EULERS].closeness.total_psnr
    reach = [name for name in BUDGETED if ends[name, FEWER].closeness.total_psnr >= euler]
    print(f"\nEuler in {EULERS} evaluations: {euler:.1f} dB. ", end="")
    print(f"In {FEWER} evaluations that is reached by {', '.join(reach) or 'none'}.")
    for (name, budget), row in ends.items():
        if budget == 0:
            print(f"\n{name}: {row.closeness.total_psnr:.1f} dB in {row.cost:.0f} evaluations.")


def steps_within(budget: int, solver: flow.Solver) -> int:
    """The most steps that a solver takes with this many evaluations."""
    assert solver.evaluations is not None
    return max(1, (budget - solver.startup) // solver.evaluations)


def progress(message: str) -> None:
    """Tell on stderr how far it is."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
