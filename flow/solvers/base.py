"""What all solvers share: the velocity they follow, the step they yield, the checks they make.

A solver follows the ODE dx/dσ = v(x, σ) along a table of noise levels and knows nothing of what v is. σ is
the noise level: 1 is pure noise, 0 is data, x = (1 - σ) · data + σ · noise and v = noise - data (SD3 paper,
arXiv:2403.03206, eq. 13, written there with t for σ). The order of the table is the direction: falling makes
data out of noise, rising finds noise.

    B  batch     *S  the shape of one sample, any     h = σ' - σ  the length of a step, negative downward
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import FlowError, VelocityError
from ..precision import wide

Velocity = Callable[[Tensor, Tensor], Tensor]
"""v(x, sigma): x (B, *S) and sigma (B,), in float32 or better, to dx/dσ at that point, (B, *S), any dtype."""


class Step(NamedTuple):
    """What a solver did between two noise levels."""

    number: int
    """0 to len(sigmas) - 2."""
    sigma: Tensor
    """(), where the step began."""
    sigma_next: Tensor
    """(), where it ended."""
    velocity: Tensor
    """(B, *S), dx/dσ at the beginning of the step as the solver had it, in the dtype of `x`."""
    x: Tensor
    """(B, *S), the state at `sigma_next`."""
    companion: Mapping[str, Tensor] | None = None
    """The second state of a reversible solver at `sigma_next`; what `x` needs beside it to be undone."""
    log_prob: Tensor | None = None
    """(B,), the log-probability density of `x` given the state before, from a stochastic solver."""
    mismatch: Tensor | None = None
    """(B,), at the end of undoing: how far the two states are, root mean square, from agreeing as they did at
    the start of the generation; see `reversible`."""

    @property
    def denoised(self) -> Tensor:
        """A preview of the data: where a straight line along `velocity` meets sigma 0, (B, *S)."""
        return self.x - self.sigma_next * self.velocity


def prepare(x: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Check a state and a table of noise levels, and bring both to float32 or better.

    Returns:
        `x` (B, *S), and `sigmas` in the dtype and on the device of `x`.

    Raises:
        FlowError: `x` has no batch dimension, is empty, not floating or not finite; or `sigmas` is not
            one-dimensional with two entries or more, leaves [0, 1], or neither rises nor falls strictly.
    """
    if x.ndim < 1 or x.numel() == 0 or not x.is_floating_point():
        raise FlowError(f"x must be floating, (B, ...), not empty; got {x.dtype} of shape {tuple(x.shape)}")
    if not x.isfinite().all():
        raise FlowError(f"x holds {int((~x.isfinite()).sum())} values that are NaN or infinite")
    if sigmas.ndim != 1 or len(sigmas) < 2 or not sigmas.is_floating_point():
        raise FlowError(f"sigmas must be floating, (steps + 1,); got {sigmas.dtype} of {tuple(sigmas.shape)}")
    x = wide(x)
    sigmas = sigmas.to(x)
    if not ((sigmas >= 0) & (sigmas <= 1)).all():
        raise FlowError(f"sigmas must lie in [0, 1], got {float(sigmas.min()):g} to {float(sigmas.max()):g}")
    signs = sigmas.diff().sign()
    if signs[0] == 0 or not (signs == signs[0]).all():
        wrong = int((signs != signs[0]).nonzero()[0]) if signs[0] != 0 else 0
        raise FlowError(
            "sigmas must rise or fall strictly all the way; "
            f"entries {wrong} and {wrong + 1} are {float(sigmas[wrong]):g} and {float(sigmas[wrong + 1]):g}"
        )
    return x, sigmas


def evaluate(velocity: Velocity, x: Tensor, sigma: Tensor, number: int) -> Tensor:
    """Call the velocity at one noise level for the whole batch and check its answer.

    Args:
        velocity: what to call.
        x: (B, *S).
        sigma: ().
        number: of the step, for the message.

    Returns:
        (B, *S), in the dtype of `x`.

    Raises:
        VelocityError: the answer has another shape, or is NaN or infinite somewhere.
    """
    v = velocity(x, sigma.expand(len(x)))
    if v.shape != x.shape:
        raise VelocityError(f"velocity must return {tuple(x.shape)}, got {tuple(v.shape)}", number)
    if not torch.isfinite(v).all():
        raise VelocityError(
            "the velocity is not finite",
            number,
            f", sigma {float(sigma):.6g}: {int((~v.isfinite()).sum())} of {v.numel()} values, computed in "
            f"{v.dtype}. Try a wider dtype, and check the weights and the inputs",
        )
    return v.to(x.dtype)


def last(steps: Iterable[Step]) -> Step:
    """Run a solver to its end and return its last step; keeps one step alive, not the trajectory."""
    kept = deque(steps, maxlen=1)
    if not kept:
        raise FlowError("there is no step to run: the generator was used up")
    return kept[0]
