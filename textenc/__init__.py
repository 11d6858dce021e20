"""From a prompt to what the MM-DiT reads: tokenizers, CLIP-L, CLIP-G, T5, and their assembly."""

from .clip import CLIP, CLIPConfig, CLIPOutput
from .t5 import T5, T5Config

__all__ = ["CLIP", "T5", "CLIPConfig", "CLIPOutput", "T5Config"]
