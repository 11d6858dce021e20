"""A proof on the user's own machine: stored activations of diffusers and transformers, computed again here.

Reading order: reference (what is stored), bounds (how far is too far), sinusoids (where processors differ),
rounding (how far float32 is), stages (what is run), runner (how), checkpoint (what is checked of a user's own
weights), table.
"""

from .bounds import Precision, precision_of
from .checkpoint import check_checkpoint
from .reference import Reference, load_reference
from .runner import Check
from .stages import run_stages
from .table import as_table

__all__ = [
    "Check",
    "Precision",
    "Reference",
    "as_table",
    "check_checkpoint",
    "load_reference",
    "precision_of",
    "run_stages",
]
