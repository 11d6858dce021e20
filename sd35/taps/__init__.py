"""Reading and changing the tensors inside the models while they run.

Reading order: parts (what a tap is), match, moment, watch, capture, captures, patch. `outputs`, `listing` and
`logits` say what each tap holds.
"""

from .capture import capture
from .captures import Captures, Record
from .errors import BudgetError, TapError
from .listing import TapInfo, list_taps
from .patch import patch

__all__ = ["BudgetError", "Captures", "Record", "TapError", "TapInfo", "capture", "list_taps", "patch"]
