"""Running a solver to its end, with a bar, and with the step named where a state is no longer finite."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from flow import InverseStep, Step, VelocityError

from ..errors import NonFiniteError
from ..model import Model

Taken = TypeVar("Taken", Step, InverseStep)
"""A step of a solver, or of an inverse."""


def watched(
    model: Model,
    steps: Iterable[Taken],
    sigmas: Tensor,
    *,
    backward: bool = False,
    bar: str | None = None,
) -> Iterator[Taken]:
    """Take steps, and see at the end whether every state was finite.

    What is counted stays on the device until then, so that no step waits for it.

    Args:
        model: what they run in.
        steps: as `flow` makes them; each is computed when it is asked for.
        sigmas: the noise levels of the way from noise to data, (steps + 1,).
        backward: the steps go from data to noise.
        bar: show a bar of this name, which may be empty, on stderr; None shows none.

    Raises:
        NonFiniteError: a state is NaN or infinite; the error names the first step that made one.
    """
    count = len(sigmas) - 1
    numbers = range(count)[::-1] if backward else range(count)
    bad: list[Tensor] = []
    x: Tensor | None = None
    try:
        shown = tqdm(steps, desc=bar or None, total=count, unit="step", disable=bar is None)
        for step in shown:
            x = step.x
            bad.append(x.isfinite().logical_not().sum())
            yield step
    except VelocityError as error:
        if "finite" not in error.fault:
            raise
        number = numbers[len(bad)] if len(bad) < count else numbers[-1]
        raise NonFiniteError(
            "transformer", model.dtype, "some", step=number, sigma=float(sigmas[number])
        ) from error
    if x is None:
        return
    counts = torch.stack(bad).tolist()
    if counts[-1]:
        first = next(index for index, found in enumerate(counts) if found)
        number = numbers[min(first, count - 1)]
        told = f"{counts[first]} of {x.numel()}"
        raise NonFiniteError("transformer", model.dtype, told, step=number, sigma=float(sigmas[number]))
