"""Inpainting as a velocity: what is kept moves on the straight path to the picture, the rest as it would."""

import torch
from torch import Tensor

from .errors import FlowError
from .precision import wide
from .solvers.base import Velocity


def inpaint(velocity: Velocity, data: Tensor, noise: Tensor, mask: Tensor) -> Velocity:
    """Follow `velocity` where the mask is 1, and the path between `noise` and `data` where it is 0.

        v ← m · v + (1 - m) · (noise - data)

    From x = (1 - σ) · data + σ · noise, every consistent step of any solver without noise of its own leaves
    the kept part at (1 - σ') · data + σ' · noise: the path is straight. So this is the blending after each
    step that other implementations do, and it needs nothing of the solver; at σ = 0 the kept part is `data`
    up to the rounding of the sum.

    Args:
        velocity: of the flow.
        data: what is kept, (B, *S) or (1, *S).
        noise: where the flow starts from, (B, *S).
        mask: 1 where something new is drawn, 0 where the data are kept; of a shape that spreads to (B, *S).

    Raises:
        FlowError: the mask holds something else than 0 and 1: between them, the state would depend on the
            number of steps.
    """
    mask = torch.as_tensor(mask)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise FlowError("the mask must be 0 where data are kept and 1 where they are drawn, and nothing else")
    straight, drawn = wide(noise) - wide(data), mask != 0

    def kept(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.where(drawn.to(x.device), wide(velocity(x, sigma)), straight.to(x))

    return kept
