"""Skip-layer guidance: away from what the model would say without some of its layers, as Stability runs it.

A third velocity, of the prompt with layers skipped, joins the guided one in a window of early steps:

    v = v_guided + s · (v_cond - v_skipped)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from .errors import FlowError
from .guidance import Adjust
from .path import per_sample
from .precision import wide
from .solvers.base import Velocity


@dataclass(frozen=True)
class SkipLayer:
    """How skip-layer guidance is run.

    The reference's file of settings also names a "cfg" of 4.0. It never takes effect: the scale was read
    before, so that SD3.5-medium runs with 5.0; it is not here.
    """

    scale: float
    """s."""
    start: float
    """The window begins after this part of the steps."""
    stop: float
    """And ends before this part."""
    layers: tuple[int, ...]
    """Joint blocks to leave out, without a ControlNet."""

    def steps(self, count: int) -> range:
        """The steps, of `count`, that the third velocity takes part in: start · count < step < stop · count.

        Both inequalities are strict and steps count from 0, in both references: 50 steps from 0.01 to 0.2 are
        1 ... 9. In image-to-image the reference counts from 0 too, at the first step that is run, and
        compares with the count of the whole schedule.
        """
        first, end = math.floor(self.start * count) + 1, math.ceil(self.stop * count)
        return range(first, max(first, min(end, count)))

    def window(self, sigmas: Tensor, first: int = 0) -> tuple[float, float] | None:
        """The same as noise levels, lowest and highest, both included; None if no step takes part.

        Args:
            sigmas: the falling table of the whole generation, (steps + 1,).
            first: the step that is run first, from which they count; see `steps`.
        """
        count = len(sigmas) - 1
        steps = [first + step for step in self.steps(count) if first + step < count]
        return (float(sigmas[steps[-1]]), float(sigmas[steps[0]])) if steps else None


SKIP_LAYER: Mapping[str, SkipLayer] = MappingProxyType(
    {
        "reference": SkipLayer(2.5, 0.01, 0.2, (7, 8, 9)),
        "diffusers": SkipLayer(2.8, 0.01, 0.2, (7, 8, 9)),
    }
)
"""What SD3.5-medium is run with. diffusers has no layers of its own; its documentation names the same."""


def skip_layer(skipped: Velocity, settings: SkipLayer, sigmas: Tensor, first: int = 0) -> Adjust:
    """Add skip-layer guidance to a guided velocity, within the window of a generation.

    For the `adjust` of `guided`: as the conditional velocity is there, the window costs one evaluation
    more a step. As in diffusers it takes part only where guidance does; the reference would at scale 1 too.

    Args:
        skipped: the velocity with the prompt and with `settings.layers` left out.
        settings: scale and window.
        sigmas: the falling table of the generation. Solvers that also look between its levels are given the
            third velocity between the first and the last level of the window.
        first: the step that is run first, where image-to-image leaves some out.

    Raises:
        FlowError: a scale that is not finite, or a window out of order.
    """
    if not (math.isfinite(settings.scale) and 0 <= settings.start < settings.stop <= 1):
        raise FlowError(
            f"skip-layer guidance needs a finite scale and 0 <= start < stop <= 1, got {settings}"
        )
    window = settings.window(sigmas, first)

    def adjust(v: Tensor, cond: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        if window is None:
            return v
        inside = (sigma >= window[0]) & (sigma <= window[1])
        if not inside.any():
            return v
        push = settings.scale * (cond - wide(skipped(x, sigma)))
        return torch.where(per_sample(inside.float(), v) > 0, v + push, v)

    return adjust
