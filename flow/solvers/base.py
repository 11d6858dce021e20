"""What all solvers share: the velocity they follow, the step they yield, the checks they make.

A solver follows the ODE dx/dσ = v(x, σ) along a table of noise levels and knows nothing of what v is. σ is
the noise level: 1 is pure noise, 0 is data, x = (1 - σ) · data + σ · noise and v = noise - data (SD3 paper,
arXiv:2403.03206, eq. 13, written there with t for σ). The order of the table is the direction: falling makes
data out of noise, rising finds noise.

    B  batch     *S  the shape of one sample, any     h = σ' - σ  the length of a step, negative downward
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import FlowError, VelocityError
from ..precision import wide
from ..show import shown

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

    def __repr__(self) -> str:
        return shown(self)

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


class Watched:
    """A velocity whose answers are looked at when the run is over, so that no step waits for the device.

    To know whether a tensor of a GPU is finite is to wait until it is computed, at every step. On the CPU
    there is nothing to wait for, and a run that has failed ends at once.
    """

    def __init__(self, velocity: Velocity) -> None:
        self.velocity = velocity
        self._noted: list[tuple[int, Tensor, torch.dtype, int, Tensor]] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Pass on."""
        return self.velocity(x, sigma)

    def note(self, v: Tensor, sigma: Tensor, number: int) -> None:
        """Keep how many values of an answer are not finite, without looking."""
        self._noted.append((number, sigma, v.dtype, v.numel(), v.isfinite().logical_not().sum()))

    def settle(self) -> None:
        """Look once, and raise the first VelocityError that a step should have ended in."""
        noted, self._noted = self._noted, []
        counts = torch.stack([one[-1] for one in noted]).tolist() if noted else []
        for (number, sigma, dtype, values, _), count in zip(noted, counts, strict=True):
            if count:
                raise _not_finite(number, sigma, dtype, values, count)


S = TypeVar("S")


def watched(run: Callable[..., Iterator[S]]) -> Callable[..., Iterator[S]]:
    """Let a solver's velocity be `Watched`: it raises what it must no later than after its last step."""

    @wraps(run)
    def start(velocity: Velocity, *args: Any, **options: Any) -> Iterator[S]:
        watch = Watched(velocity)
        steps = run(watch, *args, **options)

        def over() -> Iterator[S]:
            yield from steps
            watch.settle()

        return over()

    return start


def evaluate(velocity: Velocity, x: Tensor, sigma: Tensor, number: int) -> Tensor:
    """Call the velocity at one noise level for the whole batch and check its answer.

    Args:
        velocity: what to call; of a `Watched` one on a device, the values are checked at the end of the run.
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
    if isinstance(velocity, Watched) and v.device.type != "cpu":
        velocity.note(v, sigma, number)
    elif not torch.isfinite(v).all():
        raise _not_finite(number, sigma, v.dtype, v.numel(), int((~v.isfinite()).sum()))
    return v.to(x.dtype)


def _not_finite(number: int, sigma: Tensor, dtype: torch.dtype, values: int, count: int) -> VelocityError:
    details = (
        f", sigma {float(sigma):.6g}: {count} of {values} values, computed in {dtype}. "
        "Try a wider dtype, and check the weights and the inputs"
    )
    return VelocityError("the velocity is not finite", number, details)


def last(steps: Iterable[Step]) -> Step:
    """Run a solver to its end and return its last step; keeps one step alive, not the trajectory."""
    kept = deque(steps, maxlen=1)
    if not kept:
        raise FlowError("there is no step to run: the generator was used up")
    return kept[0]
