"""What the transformer is called for at this moment: step, noise level, images, branches."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from textenc import Encoding

Branch = Literal["cond", "uncond", "skipped"]
"""With the prompt, with the negative one, and with the prompt but layers left out (skip-layer guidance)."""

SAME_LEVEL = 1e-6
"""Noise levels nearer to each other than this are one: what solvers add up in float32."""


@dataclass(frozen=True)
class Evaluation:
    """What one call of the transformer is for: which image and which branch each row of its batch is."""

    level: Tensor  # (), the noise level; `sigma` is the same on the host
    levels: Sequence[float] | None  # of the steps of the generation, rising, without its end; None: not known
    samples: tuple[int, ...]  # of each row: the index of its image
    branches: tuple[Branch, ...]  # of each row
    encodings: tuple[Encoding, ...]  # of each row: the prompt that it is drawn from, as a batch of one

    @cached_property
    def sigma(self) -> float:
        """The noise level; read from the device when it is first asked for."""
        return float(self.level)

    @cached_property
    def step(self) -> int | None:
        """The step of the generation in which this noise level lies; None where its table is not known."""
        return None if self.levels is None else step_at(self.levels, self.sigma)


def step_at(levels: Sequence[float], sigma: float) -> int:
    """The step of a generation in which a noise level lies: the one that begins at it, or last before it.

    Args:
        levels: where the steps begin, in rising order, so the first step is the last of them.
        sigma: the noise level.
    """
    return max(len(levels) - bisect_left(levels, sigma - SAME_LEVEL) - 1, 0)


_current: ContextVar[Evaluation | None] = ContextVar("sd35.evaluation", default=None)


def current_evaluation() -> Evaluation | None:
    """What the transformer is evaluated for at this moment, for hooks; None outside a guided velocity."""
    return _current.get()


@contextmanager
def announced(evaluation: Evaluation) -> Iterator[None]:
    """Let hooks know what the transformer is called for inside the block."""
    token = _current.set(evaluation)
    try:
        yield
    finally:
        _current.reset(token)
