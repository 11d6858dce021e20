"""Attention maps of the MM-DiT: recorded, named by words, drawn.

Reading order: softmax (the computation), quadrants, record (the context manager), maps (reading them), words,
picture, sheet.
"""

from .maps import AttentionMaps, heat_share
from .picture import heat_picture, overlay
from .record import attention_maps, check_blocks
from .sheet import attention_sheet
from .words import WordError, check_words, find_word, token_labels, words_of

__all__ = [
    "AttentionMaps",
    "WordError",
    "attention_maps",
    "attention_sheet",
    "check_blocks",
    "check_words",
    "find_word",
    "heat_picture",
    "heat_share",
    "overlay",
    "token_labels",
    "words_of",
]
