"""What the exact inverse says of the noise that it found, beside what that noise is worth.

    python benchmarks/inversion_told.py --prompts 64                        pictures drawn so that they invert
    python benchmarks/inversion_told.py --schedule reference --guidance-norm 1e9    by the model's own numbers

Says for how many samples what was said is right: of the coarser way, whose error it is, and of the noise that
is returned, which should be worth more.
"""

import argparse
from collections.abc import Sequence

import torch
from inversion import arguments, batches, table_of

import flow
import sd35
from flow.inverse.exact import COARSER
from sd35.device import as_device
from sd35.tiny.captions import held_out_in_turn

ACCURACY = 1e-4
USUAL = 30
"""dB by which the noise is worth more than said, most often."""


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw, invert with the check and as coarsely as it does, compare."""
    args = options().parse_args(argv)
    pipe, sigmas = sd35.load(args.model, as_device(args.device), torch.float32), table_of(args)
    told: list[float] = []
    coarse: list[float] = []
    worth: list[float] = []
    named: list[bool] = []
    for batch in batches(pipe, held_out_in_turn(args.prompts, seed=1), args):
        data = flow.solve(batch.velocity, batch.noise, sigmas)
        found = flow.inversion(batch.velocity, data, sigmas, accuracy=ACCURACY)
        rough = flow.inversion(batch.velocity, data, sigmas, accuracy=COARSER * ACCURACY, check=False)
        told += found.decibels
        worth += flow.closeness(found.noise, batch.noise).psnr.tolist()
        coarse += flow.closeness(rough.noise, batch.noise).psnr.tolist()
        named += [sample in found.report.ambiguous for sample in range(len(data))]
    count = len(told)
    for within in (1, 6):
        right = sum(abs(one - other) <= within for one, other in zip(told, coarse, strict=True))
        print(f"within {within} dB of the coarser way: {right} of {count}")
    less = [sample for sample in range(count) if worth[sample] < told[sample] - 1]
    print(f"the noise is worth what was said or more, to 1 dB: {count - len(less)} of {count}; ", end="")
    print(f"of the others {sum(named[sample] for sample in less)} were named as folding")
    for sample in less:
        print(f"  prompt {sample}: told {told[sample]:.1f} dB, worth {worth[sample]:.1f}")
    usual = sum(abs(one - other - USUAL) <= 6 for one, other in zip(worth, told, strict=True))
    print(f"{USUAL} dB more than said is right within 6 dB for {usual} of {count}")
    print(f"worth {min(worth):.1f} dB at least, {sorted(worth)[count // 2]:.1f} in the median")
    gains = sorted(one - other for one, other in zip(worth, told, strict=True))
    least, median, most = (gains[round(share * (count - 1))] for share in (0.05, 0.5, 0.95))
    print(
        f"worth more than said by, in nine of ten: {least:.1f} to {most:.1f} dB, {median:.1f} in the median"
    )


def options() -> argparse.ArgumentParser:
    """Those of inversion.py, with numbers of its own."""
    parser = arguments()
    parser.description = __doc__
    parser.set_defaults(schedule="tailed", guidance_interval=(0.7, 1.0), guidance_norm=5.0)
    return parser


if __name__ == "__main__":
    main()
