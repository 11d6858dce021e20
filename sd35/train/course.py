"""How a run goes, told by its losses: when it is lost, and what is said then."""

from collections import deque
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from statistics import median

PROBED = 8
"""Micro-batches whose loss is compared with what it was: the first of the run."""
TIMES = 3.0
"""A run is lost where their loss is so many times that of the beginning. One that learns lowers it; a network
that answers nothing has five to ten times the loss of a trained one."""
SUSPECT, RECENT, EVERY = 2.0, 5, 20
"""When it is looked at: see `Course.is_lost`."""


class DivergedError(ArithmeticError):
    """A loss or gradient is no number, after which the last good weights are saved; or the run is lost."""


class Course:
    """Whether a run still learns.

    A loss of training is mostly the chance of its noise and noise levels. That of the same micro-batches, now
    and before the first step, has no chance in it.

    Args:
        probe: the mean loss of those micro-batches with the weights as they are. It takes as many forwards.
    """

    def __init__(self, probe: Callable[[], float]) -> None:
        self.probe = probe
        self.start = self.now = probe()
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.waited = 0

    def is_lost(self, loss: float, *, saves: bool) -> bool:
        """Whether it is, after a step of this loss.

        It is looked at where two of three are so: the last losses are high, 20 steps went by since the last
        look, and the weights are about to be saved.
        """
        self.recent.append(loss)
        self.waited += 1
        suspects = median(self.recent) > SUSPECT * self.start
        if suspects + (self.waited >= EVERY) + saves < 2 or not self.start > 0:
            return False
        self.waited, self.now = 0, self.probe()
        return not self.now <= TIMES * self.start

    def told(self, step: int, saved: int, folder: Path) -> str:
        """What is said when it is lost, with the step that was saved last."""
        times = self.now / self.start
        what = f"the run diverged: after step {step} the loss of its first batches is {self.now:.3g}"
        kept = f"the last save, of step {saved}, is in {folder}" if saved else "nothing was saved yet"
        return (
            f"{what}, {times:.1f} times what it was at the start, and {kept}: try a lower learning rate or a "
            "longer warm-up"
        )


def diverged(row: Mapping[str, float], folder: Path) -> str:
    """What is said of a loss or gradient that is no number, and of what is left."""
    loss, norm, step = row["loss"], row["gradient_norm"], int(row["step"])
    what = f"the gradients have the norm {norm}" if isfinite(loss) else f"the loss is {loss}"
    kept = f"the weights of step {step - 1} are in {folder}" if step > 1 else "nothing was learned before"
    return f"{what} in step {step}, and {kept}: try a lower learning rate, a longer warm-up or bfloat16"
