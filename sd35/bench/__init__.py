"""How fast the parts are on this machine, against what it could do and against another implementation.

Reading order: clock (what is measured of a call), ceilings (what the machine can do), parts (the models: a
user's, or random ones of the released sizes), stages (what is run), peer (who is beside), table.
"""

from .ceilings import Ceilings, find_ceilings
from .parts import Parts, of_source, of_variant
from .peer import Peer, load_peer
from .stages import Measured, run_stages
from .table import as_row, header

__all__ = [
    "Ceilings",
    "Measured",
    "Parts",
    "Peer",
    "as_row",
    "find_ceilings",
    "header",
    "load_peer",
    "of_source",
    "of_variant",
    "run_stages",
]
