"""From a prompt to what the MM-DiT reads: tokenizers, CLIP-L, CLIP-G, T5, and their assembly.

Read `clip.py` and `t5.py` for the encoders, `tokenizer.py` for how prompts are read, and `encode.py` for
how the parts become `context` and `pooled`.
"""

from .clip import CLIP, CLIPConfig, CLIPOutput
from .encode import TextEncoder, Widths, assemble
from .encoding import ContextToken, Encoding, Note
from .errors import VocabularyError
from .prompt import Prompt
from .t5 import T5, T5Config
from .tokenizer import POLICIES, CLIPTokenizer, PromptPolicy, T5Tokenizer, Token, Tokens

__all__ = [
    "CLIP",
    "POLICIES",
    "T5",
    "CLIPConfig",
    "CLIPOutput",
    "CLIPTokenizer",
    "ContextToken",
    "Encoding",
    "Note",
    "Prompt",
    "PromptPolicy",
    "T5Config",
    "T5Tokenizer",
    "TextEncoder",
    "Token",
    "Tokens",
    "VocabularyError",
    "Widths",
    "assemble",
]
