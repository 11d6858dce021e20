"""How nearly `exact` returns by guidance, number of steps, table of noise levels and limit on guidance.

    python benchmarks/inversion_grid.py         guided where sigma is 0.7 or more, as the embedded model is

Each cell is the least and the median PSNR in dB of the noise found, of the samples, and the evaluations as a
multiple of naive's; without the limit, and with it. Prints Markdown.
"""

import argparse
from collections.abc import Sequence

import torch
from inversion import arguments, batches, table_of
from rows import Row, show

import flow
import sd35
from sd35.device import as_device
from sd35.tiny.captions import held_out_in_turn

PROMPTS = {14: 8, 28: 8, 50: 4}
"""By the number of steps."""
TABLES = ("reference", "tailed")
SCALES = (1.0, 2.5, 4.5, 7.0, 10.0)
LIMITS = (None, 5.0)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Fill the cells, row by row."""
    args = options().parse_args(argv)
    pipe = sd35.load(args.model, as_device(args.device), torch.float32)
    cells = []
    for args.steps, args.prompts in PROMPTS.items():
        for args.schedule in TABLES:
            row = [str(args.steps), args.schedule]
            for args.guidance_scale in SCALES:
                limits = LIMITS if args.guidance_scale != 1 else LIMITS[:1]
                found = []
                for args.guidance_norm in limits:
                    found.append(cell(pipe, args))
                row.append("; ".join(found))
            cells.append(row)
    show(["steps", "table", *(f"scale {scale:g}" for scale in SCALES)], cells)


def cell(pipe: sd35.Pipeline, args: argparse.Namespace) -> str:
    """Draw and invert at one scale, table and limit."""
    row, sigmas = Row(), table_of(args)
    for batch in batches(pipe, held_out_in_turn(args.prompts, seed=1), args):
        data = flow.solve(batch.velocity, batch.noise, sigmas)
        accuracy = args.accuracies[0]
        found = flow.inversion(batch.velocity, data, sigmas, accuracy=accuracy, check=False)
        row.add(found.noise, batch.noise, found.report.mean_evaluations)
    _, times, _, least, median, *_ = row.cells(args.steps)
    return f"{float(least):.0f} / {float(median):.0f}, {times} x"


def options() -> argparse.ArgumentParser:
    """Those of inversion.py, with numbers of its own."""
    parser = arguments()
    parser.description = __doc__
    parser.set_defaults(accuracies=[1e-3], guidance_interval=(0.7, 1.0))
    return parser


if __name__ == "__main__":
    main()
