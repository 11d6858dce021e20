"""How a run goes, told by its losses: when it is lost, and what is said then."""

from collections import deque
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from statistics import median

RUNAWAY, IN_A_ROW = 1000, 3
"""Times the median of the losses before, and steps: weights can make a single loss as large by chance."""


class DivergedError(ArithmeticError):
    """A loss or gradient is NaN or infinite, after which the last good weights are saved; or it runs away."""


class Course:
    """The losses so far, which tell when one runs away: far above the others, some steps in a row."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=100)
        self.high = 0

    def runs_away(self, loss: float) -> bool:
        """Whether it has, with the loss of this step."""
        if self.losses and loss > RUNAWAY * median(self.losses):
            self.high += 1
        else:
            self.high = 0
            self.losses.append(loss)
        return self.high == IN_A_ROW

    def ran_away(self, row: Mapping[str, float], saved: int, folder: Path) -> str:
        """What is said then, with the step that was saved last."""
        what = f"the loss is {row['loss']:.3g} in step {int(row['step'])}, after {median(self.losses):.3g}"
        kept = f"the last save, of step {saved}, is in {folder}" if saved else "nothing was saved yet"
        return f"{what}, and {kept}: try a lower learning rate or a longer warm-up"


def diverged(row: Mapping[str, float], folder: Path) -> str:
    """What went wrong, and what is left."""
    loss, norm, step = row["loss"], row["gradient_norm"], int(row["step"])
    what = f"the gradients have the norm {norm}" if isfinite(loss) else f"the loss is {loss}"
    kept = f"the weights of step {step - 1} are in {folder}" if step > 1 else "nothing was learned before"
    return f"{what} in step {step}, and {kept}: try a lower learning rate, a longer warm-up or bfloat16"
