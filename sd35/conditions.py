"""What stands between guidance and the transformer: a call of it, and what may change the call.

The one seam by which a velocity is given more than a prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from mmdit.model import spread

from .evaluation import Evaluation


@dataclass(frozen=True)
class Call:
    """What the transformer is called with, once: the rows of its batch are samples times branches."""

    latents: Tensor  # (B, C, h, w)
    sigma: Tensor  # (B,)
    context: Tensor  # (B, M, context_dim)
    pooled: Tensor  # (B, pooled_dim)
    evaluation: Evaluation
    skip_layers: tuple[int, ...] = ()
    residuals: tuple[Tensor | None, ...] | None = None  # added after each block, (B, N, D)

    def with_residuals(self, residuals: Sequence[Tensor | None], depth: int) -> "Call":
        """The call with what a ControlNet adds, beside what others add already.

        Args:
            residuals: one for every block or fewer, which `mmdit.spread` spreads.
            depth: blocks of the transformer.
        """
        own, others = spread(residuals, depth), self.residuals or (None,) * depth
        added = (a if b is None else b if a is None else a + b for a, b in zip(own, others, strict=True))
        return replace(self, residuals=tuple(added))


Condition = Callable[[Call, Callable[[Call], Tensor]], Tensor]
"""condition(call, run) -> velocity (B, C, h, w).

A ControlNet runs the call with residuals added,
an inpainting model with channels added to the latents; a cache may answer without running it. Conditions
apply in their order, the first being nearest to guidance.
"""
