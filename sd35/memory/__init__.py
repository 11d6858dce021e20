"""Drawing in less memory: `plan` is what is done, and needed; `first` what is computed before the steps."""

from .first import levels_asked, modulation_first, positions_of
from .plan import NOTHING, PLANS, Level, Needs, Plan, choose, free_memory, keep_blocks

__all__ = [
    "NOTHING",
    "PLANS",
    "Level",
    "Needs",
    "Plan",
    "choose",
    "free_memory",
    "keep_blocks",
    "levels_asked",
    "modulation_first",
    "positions_of",
]
