"""LoRA and its relatives, read from the files of every trainer."""

from .describe import AdapterReport as AdapterReport
from .describe import inspect_adapter as inspect_adapter
from .read import is_adapter as is_adapter
from .read import read_adapter as read_adapter
from .value import KINDS as KINDS
from .value import Adapter as Adapter
from .value import Update as Update
from .value import matrix as matrix
from .write import Spelling as Spelling
from .write import spell_adapter as spell_adapter
