"""ControlNets in a generation: what each gives at a point of the flow is added to the image tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdit import ControlNet, JointControlNet, MMDiT, spread

from ..conditions import Call
from ..evaluation import Branch
from ..inputs import Rule
from .inpainting import rows_of

Net = ControlNet | JointControlNet
BOTH: tuple[Branch, ...] = ("cond", "uncond")
"""The branches that both references steer; the one with layers left out is not."""


@dataclass(frozen=True)
class Steering:
    """A `Condition`: one ControlNet with its encoded picture."""

    net: Net
    base: MMDiT
    control_latents: Tensor  # (1 or B, C, h, w)
    scale: float = 1.0
    kept: frozenset[int] | None = None  # steps of the whole schedule in which it acts; None: all
    rule: Rule = "reference"  # whether the last block of the base takes a residual
    branches: tuple[Branch, ...] = BOTH

    def __call__(self, call: Call, run: Callable[[Call], Tensor]) -> Tensor:
        """See `sd35.conditions.Condition`."""
        evaluation = call.evaluation
        if self.kept is not None and evaluation.step is not None and evaluation.step not in self.kept:
            return run(call)
        rows = [row for row, branch in enumerate(evaluation.branches) if branch in self.branches]
        if not rows:
            return run(call)
        depth = self.base.config.depth
        residuals = [
            None if one is None else _in_rows(one, rows, len(evaluation.branches))
            for one in spread(self._residuals(call, rows), depth, self.rule)
        ]
        return run(call.with_residuals(residuals, depth))

    def _residuals(self, call: Call, rows: list[int]) -> list[Tensor]:
        control = rows_of(self.control_latents, call)[rows].to(call.latents.device)
        latents, sigma, pooled = call.latents[rows], call.sigma[rows], call.pooled[rows]
        if isinstance(self.net, ControlNet):
            return self.net(self.base, latents, sigma, pooled, control, scale=self.scale)
        latents = latents[:, : self.net.config.channels]
        return self.net(latents, sigma, call.context[rows], pooled, control, scale=self.scale)


def _in_rows(residual: Tensor, rows: list[int], count: int) -> Tensor:
    """A residual of some rows of a batch, with zeros in the others."""
    if len(rows) == count:
        return residual
    whole = torch.zeros(count, *residual.shape[1:], dtype=residual.dtype, device=residual.device)
    whole[rows] = residual
    return whole
