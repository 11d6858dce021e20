"""The errors that this package raises, all of one kind."""

from typing import Self


class FlowError(ValueError):
    """A call that cannot be carried out, or a velocity that is not finite; the message says what to do."""


class VelocityError(FlowError):
    """A velocity gave what no solver can work with: another shape, NaN or infinity."""

    def __init__(self, fault: str, number: int, details: str = "") -> None:
        self.fault, self.number, self.details = fault, number, details
        super().__init__(f"{fault} at step {number}{details}")

    def at(self, number: int) -> Self:
        """The same of a step that the caller counts otherwise."""
        return type(self)(self.fault, number, self.details)
