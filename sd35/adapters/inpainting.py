"""What a transformer made for inpainting reads beside its latents."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..conditions import Call


@dataclass(frozen=True)
class Beside:
    """A `Condition` that joins channels to the latents: a mask, and the latents of the masked picture."""

    channels: Tensor  # (1 or B, 17, h, w)

    def __call__(self, call: Call, run: Callable[[Call], Tensor]) -> Tensor:
        """See `sd35.conditions.Condition`."""
        beside = rows_of(self.channels, call).to(call.latents)
        return run(replace(call, latents=torch.cat([call.latents, beside], dim=1)))


def rows_of(each: Tensor, call: Call) -> Tensor:
    """What belongs to each row of a call, of what there is of each sample, or once for all."""
    samples = call.evaluation.samples
    return each.expand(len(samples), *each.shape[1:]) if len(each) == 1 else each[list(samples)]
