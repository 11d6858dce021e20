"""What goes wrong when a model is read or changed from outside."""


class TapError(ValueError):
    """A tap, step or branch that does not exist, or a tensor that does not fit where it should go."""


class BudgetError(TapError):
    """Capturing would take more memory than was allowed; the message says how much it would take."""
