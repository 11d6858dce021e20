"""The one kind of error this package raises."""


class FlowError(ValueError):
    """A call that cannot be carried out, or a velocity that is not finite; the message says what to do."""
