"""Reading and changing the tensors inside the models while they run.

Reading order: parts (what a tap is), match, moment, watch, capture, captures, edit. `dims` and `listing` say
what each tap holds.
"""

from .capture import capture
from .captures import Captures, Record
from .edit import edit
from .errors import BudgetError, TapError
from .listing import TapInfo, list_taps

__all__ = ["BudgetError", "Captures", "Record", "TapError", "TapInfo", "capture", "edit", "list_taps"]
