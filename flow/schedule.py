"""Tables of noise levels: which sigmas a sampler visits.

The schedule of SD3 (arXiv:2403.03206, section 5.3.2, eq. 23) bends evenly spaced levels toward noise:

    σ = s · t / (1 + (s - 1) · t),    s = `schedule_shift`, 3 for SD3.5; 1 changes nothing
"""

import math
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import FlowError

Preset = Literal["reference", "diffusers", "linear", "tailed"]
LEVELS = 1000
"""Both reference implementations count noise levels 1 ... 1000."""
MOST_STEPS = 10_000
"""With more, the float32 levels of a strongly shifted table are no longer apart from each other."""
LEAST_RATIO = 0.4
"""See `tail`."""


def sigmas(
    steps: int,
    schedule_shift: float = 3.0,
    preset: Preset = "reference",
    *,
    least_ratio: float | None = None,
) -> Tensor:
    """The noise levels of a generation, from 1 to 0.

    `reference` and `diffusers` are Stability's code and diffusers' to the last float32 bit. Both apply the
    shift twice to the smallest level, so that with shift 3 the last level above 0 is 0.0089 whatever the
    number of steps; they differ from each other in rounding only, by at most 1.2e-7 (Stability spaces the
    levels in float32, diffusers in float64). `linear` shifts evenly spaced levels from 1 to 0 once, as the
    formula alone suggests: the cleaner table for studies of solvers, but not the one that SD3.5 is run with.
    `tailed` is `linear` with its last step, the one to 0, divided: down to the 0.0089 of the others by steps
    none of which keeps less than `least_ratio` of σ. Its generations can be inverted where those of the
    others fold; `tail` has the argument.

    Args:
        steps: how many steps, 1 to 10,000.
        schedule_shift: s above, positive.
        preset: whose table.
        least_ratio: of `tailed`, in (0, 0.5]: σ' / σ of a step is at least that, except the last's. None
            is 0.4.

    Returns:
        float32, (steps + 1,), strictly falling, on the CPU.

    Raises:
        FlowError: `steps` is out of range, the shift is not positive, the preset is unknown, or the ratio is
            out of range or given for another preset.
    """
    steps = checked_steps(steps)
    if not 0 < schedule_shift < float("inf"):
        raise FlowError(f"schedule_shift must be a positive number, got {schedule_shift}")
    if preset not in get_args(Preset):
        raise FlowError(f"preset must be one of {', '.join(get_args(Preset))}; got {preset!r}")
    if least_ratio is not None and preset != "tailed":
        raise FlowError(f"least_ratio belongs to preset 'tailed'; {preset!r} has none")
    if preset == "tailed":
        return tailed(steps, schedule_shift, LEAST_RATIO if least_ratio is None else least_ratio)
    if preset == "linear":
        return even(steps, schedule_shift).float()

    largest, smallest = trained(schedule_shift)
    if preset == "reference":
        first, last = float(largest * LEVELS), float(smallest * LEVELS)
        levels = torch.linspace(first, last, steps, dtype=torch.float32, device="cpu")
    else:
        levels = _spaced(largest.double() * LEVELS, smallest.double() * LEVELS, steps)
    return _to_zero(shifted(levels / LEVELS, schedule_shift))


def trained(schedule_shift: float) -> Tensor:
    """The largest and the smallest of the trained levels, shifted once, in float32, as both references do."""
    ends = torch.tensor([LEVELS, 1], dtype=torch.float32, device="cpu") / LEVELS
    return shifted(ends, schedule_shift)


def even(steps: int, schedule_shift: float) -> Tensor:
    """Evenly spaced levels from 1 to 0, shifted, (steps + 1,) float64."""
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu"), schedule_shift)


def tailed(steps: int, schedule_shift: float, least_ratio: float) -> Tensor:
    """Even levels that end in a geometric tail, so that no step shrinks what is off the data too much.

    Write an Euler step with the denoised state, D = x - σ v, and ρ = σ' / σ:

        x' = ρ x + (1 - ρ) D(x),    so its derivative is ρ + (1 - ρ) D'

    Along the data D' is 1, and so is the step's. Across them D' is 0 and an error e of the network, which
    guidance multiplies: the step stretches by ρ + (1 - ρ) e. Where e < -ρ / (1 - ρ) that is negative. The
    step then folds: it is no longer one-to-one, and no inverse can know which way it came. The reference
    table's last step but one, from 0.111 to 0.0089, has ρ = 0.08 and folds from e = -0.087 on; with ρ at
    least 0.4 it takes e = -0.67. The very last step, to 0, has ρ = 0 on any table, and little left to fold.

    The tail takes the fewest steps, K in all, that keep the bound: of `linear` with steps - K + 1 steps, the
    last, from some σ to 0, is replaced by K - 1 steps of one ratio and one to 0. They go down to the smallest
    trained level, twice shifted as in the references. K is at most half of the steps; where these do not
    reach so far, they go as far as the bound lets them.

    Args:
        steps: at least 1.
        schedule_shift: of the even levels.
        least_ratio: the bound on ρ, in (0, 0.5]. Even levels go down by at most one half.

    Raises:
        FlowError: the ratio is out of range.
    """
    if not 0 < least_ratio <= 0.5:
        raise FlowError(f"least_ratio must lie in (0, 0.5], got {least_ratio}")
    smallest = float(shifted(trained(schedule_shift)[1], schedule_shift))
    count, most = 1, max(1, steps // 2)
    while True:
        levels = even(steps - count + 1, schedule_shift)[:-1]
        start = float(levels[-1])
        reached = start * least_ratio ** (count - 1)
        if count == most or reached <= smallest:
            break
        count += 1
    end = min(start, max(smallest, reached))
    down = torch.linspace(math.log(start), math.log(end), count, dtype=torch.float64, device="cpu").exp()
    return _to_zero(torch.cat([levels[:-1], down]))


def _to_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels.float(), torch.zeros(1, dtype=torch.float32, device="cpu")])


def _spaced(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Evenly spaced levels in numpy's order of operations, which the last bit of diffusers' depends on."""
    if steps == 1:
        return first[None]
    levels = (
        torch.arange(steps, dtype=first.dtype, device=first.device) * ((last - first) / (steps - 1)) + first
    )
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
    steps = checked_steps(steps)
    if not 0 < strength <= 1:
        raise FlowError(f"strength must be above 0 and at most 1, got {strength}")
    if preset not in ("reference", "diffusers"):
        raise FlowError(f"preset must be reference or diffusers, got {preset!r}")
    if preset == "reference":
        return int(steps * (1 - strength))
    return int(steps - min(steps * strength, steps))


def checked_steps(steps: int) -> int:
    """`steps` as Python's whole number, whichever library's it is.

    Raises:
        FlowError: it is none, or not in 1 ... 10,000.
    """
    if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1:
        raise FlowError(f"steps must be a whole number of at least 1, got {steps!r}")
    if steps > MOST_STEPS:
        raise FlowError(f"steps must be at most {MOST_STEPS}, got {int(steps)}; SD3.5 is made for 20 to 50")
    return int(steps)
