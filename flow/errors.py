"""The errors that this package raises, all of one kind."""

from typing import Self

import torch


class FlowError(ValueError):
    """A call that cannot be carried out, or a velocity that is not finite; the message says what to do."""


class NotFiniteError(FlowError):
    """A velocity that is NaN or infinite somewhere."""

    def __init__(self, number: int, sigma: float, wrong: int, total: int, dtype: torch.dtype) -> None:
        self.number, self.found = number, (sigma, wrong, total, dtype)
        super().__init__(
            f"the velocity is not finite at step {number}, sigma {sigma:.6g}: {wrong} of {total} values, "
            f"computed in {dtype}. Try a wider dtype, and check the weights and the inputs"
        )

    def at(self, number: int) -> Self:
        """The same of a step that its caller counts otherwise."""
        return type(self)(number, *self.found)
