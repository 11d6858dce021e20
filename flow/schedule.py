"""Tables of noise levels: which sigmas a sampler visits.

The schedule of SD3 (arXiv:2403.03206, section 5.3.2, eq. 23) bends evenly spaced levels toward noise:

    σ = s · t / (1 + (s - 1) · t),    s = `schedule_shift`, 3 for SD3.5; 1 changes nothing
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import FlowError

Preset = Literal["reference", "diffusers", "linear"]
LEVELS = 1000
"""Both reference implementations count noise levels 1 ... 1000."""


def sigmas(steps: int, schedule_shift: float = 3.0, preset: Preset = "reference") -> Tensor:
    """The noise levels of a generation, from 1 to 0.

    `reference` and `diffusers` are Stability's code and diffusers' to the last float32 bit. Both apply the
    shift twice to the smallest level, so that with shift 3 the last level above 0 is 0.0089 whatever the
    number of steps; they differ from each other in rounding only, by at most 1.2e-7 (Stability spaces the
    levels in float32, diffusers in float64). `linear` shifts evenly spaced levels from 1 to 0 once, as the
    formula alone suggests: the cleaner table for studies of solvers, but not the one that SD3.5 is run with.

    Args:
        steps: how many steps, at least 1.
        schedule_shift: s above, positive.
        preset: whose table.

    Returns:
        float32, (steps + 1,), strictly falling.

    Raises:
        FlowError: `steps` is below 1, the shift is not positive or the preset is unknown.
    """
    check_steps(steps)
    if not 0 < schedule_shift < float("inf"):
        raise FlowError(f"schedule_shift must be a positive number, got {schedule_shift}")
    if preset == "linear":
        return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), schedule_shift).float()
    if preset not in get_args(Preset):
        raise FlowError(f"preset must be one of {', '.join(get_args(Preset))}; got {preset!r}")

    # The largest and smallest of the trained levels are already shifted, in float32, in both implementations.
    largest, smallest = shifted(torch.tensor([LEVELS, 1]) / LEVELS, schedule_shift)
    if preset == "reference":
        levels = torch.linspace(largest * LEVELS, smallest * LEVELS, steps)
    else:
        levels = _spaced(largest.double() * LEVELS, smallest.double() * LEVELS, steps)
    return torch.cat([shifted(levels / LEVELS, schedule_shift).float(), torch.zeros(1)])


def _spaced(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Evenly spaced levels in numpy's order of operations, which the last bit of diffusers' depends on."""
    if steps == 1:
        return first[None]
    levels = torch.arange(steps, dtype=first.dtype) * ((last - first) / (steps - 1)) + first
    levels[-1] = last
    return levels


def shifted(level: Tensor, schedule_shift: float) -> Tensor:
    """Bend a noise level in [0, 1] toward noise: s t / (1 + (s - 1) t) (arXiv:2403.03206, eq. 23)."""
    return schedule_shift * level / (1 + (schedule_shift - 1) * level)


def start_step(steps: int, strength: float, preset: Literal["reference", "diffusers"] = "reference") -> int:
    """The step at which image-to-image enters a schedule; start with `interpolate` at `sigmas[start_step]`.

        reference:  ⌊steps · (1 - strength)⌋        diffusers:  ⌊steps - min(steps · strength, steps)⌋

    On paper they are equal. In floating point the reference starts one step earlier wherever 1 - strength is
    rounded down, for instance at 20 steps and strength 0.8.

    Args:
        steps: steps of the full schedule.
        strength: how much of it to run, in (0, 1]; 1 starts from noise alone.
        preset: whose rule.

    Returns:
        The number of steps to leave out, below `steps`.

    Raises:
        FlowError: `steps` is below 1, or the strength or the preset is not one of the above.
    """
    check_steps(steps)
    if not 0 < strength <= 1:
        raise FlowError(f"strength must be above 0 and at most 1, got {strength}")
    if preset not in ("reference", "diffusers"):
        raise FlowError(f"preset must be reference or diffusers, got {preset!r}")
    if preset == "reference":
        return int(steps * (1 - strength))
    return int(steps - min(steps * strength, steps))


def check_steps(steps: int) -> None:
    """Raise FlowError unless `steps` is a whole number of at least 1."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise FlowError(f"steps must be a whole number of at least 1, got {steps!r}")
