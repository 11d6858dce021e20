"""The rows of the tables that `inversion` prints: what a method did over all batches, as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

import flow
import sd35


class Counted:
    """A velocity that counts its calls."""

    def __init__(self, velocity: flow.Velocity) -> None:
        self.velocity, self.calls = velocity, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Count, and pass on."""
        self.calls += 1
        return self.velocity(x, sigma)

    def part(self, samples: Sequence[int]) -> flow.Velocity:
        """Of some samples alone, uncounted: inverses report what they took of each."""
        assert isinstance(self.velocity, sd35.GuidedVelocity)
        return self.velocity.part(samples)


@dataclass
class Row:
    """What one method did, gathered over batches."""

    found: list[Tensor] = field(default_factory=list)
    true: list[Tensor] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    missed: int = 0  # samples of which the report said that a step did not converge
    suspected: int = 0  # and those in which it saw a step that may fold
    poor: int = 0  # those whose noise it says is not worth much
    overrated: int = 0  # and those whose noise was worth less than it said

    def add(self, found: Tensor, true: Tensor, evaluations: float) -> None:
        """Take in one batch."""
        self.found.append(found.cpu())
        self.true.append(true.cpu())
        self.evaluations.append(evaluations)

    @property
    def cost(self) -> float:
        """Evaluations, the mean over samples, in batches of one size."""
        return sum(self.evaluations) / len(self.evaluations)

    @property
    def closeness(self) -> flow.Closeness:
        """Of what was found to what is true, over all batches."""
        return flow.closeness(torch.cat(self.found), torch.cat(self.true))

    def cells(self, naive: float) -> list[str]:
        """Evaluations, as a multiple of the naive inverse's too, PSNR (and of the samples) and cosine."""
        close = self.closeness
        own = close.psnr
        psnr = [f"{db:.1f}" for db in (close.total_psnr, own.min(), own.median(), own.max())]
        if close.total_mse == 0:
            psnr = ["equal bits", "", "", ""]
        return [f"{self.cost:.0f}", f"{self.cost / naive:.1f}", *psnr, f"{close.total_cosine:.6f}"]


def show(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
