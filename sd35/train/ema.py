"""A running average of the weights, with a decay that grows from nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def ema_decay(
    step: int,
    decay: float,
    *,
    power: float | None = None,
    inv_gamma: float = 1.0,
    update_after: int = 0,
    min_decay: float = 0.0,
) -> float:
    """The decay of an update, as diffusers' EMAModel and k-diffusion's EMAWarmup have it.

        n = step - update_after - 1,    min(decay, 1 - (1 + n / inv_gamma)^-power),    (1 + n) / (10 + n)
                                                                                       without a power

    The first update copies: at n = 0 the decay is 0, whatever `min_decay` says.

    Args:
        step: 1 for the first.
        decay: what it grows to.
        power: 2/3 reaches 0.999 after 31,600 steps, 3/4 after 10,000.
        inv_gamma: stretches the growth.
        update_after: steps that are copied.
        min_decay: the least after the first.
    """
    n = max(0, step - update_after - 1)
    if n <= 0:
        return 0.0
    grown = (1 + n) / (10 + n) if power is None else 1 - (1 + n / inv_gamma) ** -power
    return max(min(grown, decay), min_decay)


class Average:
    """The average of some weights.

    Args:
        weights: by name; the first average is a copy of them.
        decay: see `ema_decay`.
        power: likewise.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float, power: float) -> None:
        self.weights, self.decay, self.power = weights, decay, power
        self.values = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, 1 being the first."""
        share = 1 - ema_decay(step, self.decay, power=self.power)
        for name, value in self.values.items():
            value.lerp_(self.weights[name], share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the weights' place for a while; they come back to the last bit."""
        kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])
