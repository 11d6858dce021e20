"""Taking the steps of a solver with a bar, and naming the step in which the transformer gave NaN."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

from flow import InverseStep, Step, VelocityError

from ..errors import NonFiniteError
from ..model import Model

Taken = TypeVar("Taken", Step, InverseStep)
"""A step of a solver, or of an inverse."""


def take_steps(
    model: Model,
    steps: Iterable[Taken],
    sigmas: Tensor,
    *,
    rising: bool = False,
    bar: str | None = None,
) -> Iterator[Taken]:
    """Take steps.

    Args:
        model: what they run in.
        steps: as `flow` makes them; each is computed when it is asked for.
        sigmas: the noise levels of the generation, falling, (steps + 1,).
        rising: a solver runs through them from the end, and counts so.
        bar: show a bar of this name, which may be empty, on stderr; None shows none.

    Raises:
        NonFiniteError: the transformer gave NaN or infinity; on a device it is told after the last step, for
            which alone the device is waited for.
    """
    count = len(sigmas) - 1
    try:
        yield from tqdm(steps, desc=bar or None, total=count, unit="step", disable=bar is None)
    except VelocityError as error:
        if "finite" not in error.fault:
            raise
        number = count - 1 - error.number if rising else error.number
        sigma = float(sigmas[number + 1 if rising else number])
        raise NonFiniteError("transformer", model.dtype, "some", step=number, sigma=sigma) from error
