"""The tokenizers of the embedded model: each word of the captions is one token.

Two vocabularies, in the formats of the official ones. CLIP's is a byte-level BPE (GPT-2's byte
symbols, once plain and once with `</w>` for the end of a word, then one symbol for each merge, then
two specials); T5's is a unigram model whose words begin with ▁. Any text can be encoded: what no
caption says falls apart into letters. The files depend on the grammar alone.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from textenc.tokenizer import CLIPTokenizer, T5Tokenizer

from ..saved.write import written
from .captions import (
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    FILLERS,
    KIND_WORDS,
    OPENINGS,
    PLACE_WORDS,
    RELATION_WORDS,
    SIZE_WORDS,
    TWO,
    plural,
)
from .scenes import BACKGROUNDS, KINDS

CLIP_FOLDERS = ("tokenizer", "tokenizer_2")  # CLIP-L's and CLIP-G's
T5_FOLDER = "tokenizer_3"

Merge = tuple[str, str]


class Tokenizers:
    """The three tokenizers in a folder that `write_tokenizers` made, for whole batches of captions.

    `textenc` reads the same files prompt by prompt, and to its full length; training has many short
    texts and wants no more padding than they need.
    """

    def __init__(self, folder: Path) -> None:
        l_folder, g_folder = CLIP_FOLDERS
        self.clip_l = CLIPTokenizer.load(folder / l_folder, pad_with_end=True)
        self.clip_g = CLIPTokenizer.load(folder / g_folder, pad_with_end=False)
        self.t5 = T5Tokenizer.load(folder / T5_FOLDER)

    @property
    def clip_size(self) -> int:
        """The number of ids of CLIP-L and CLIP-G."""
        return self.clip_l.tokenizer.get_vocab_size()

    @property
    def t5_size(self) -> int:
        """The number of ids of T5."""
        return self.t5.tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str], *, length: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids of B captions for CLIP-L, CLIP-G and T5, (B, L) int64 each.

        Args:
            texts: captions, or empty texts.
            length: pad to this many tokens; None pads each encoder's ids to its longest caption.

        Raises:
            ValueError: a caption has more than `length` tokens.
        """
        clip_l, clip_g = (
            _padded([[clip.start.id, *row, clip.end.id] for row in _ids(clip, texts)], clip.pad.id, length)
            for clip in (self.clip_l, self.clip_g)
        )
        t5 = _padded([[*row, self.t5.end.id] for row in _ids(self.t5, texts)], self.t5.pad.id, length)
        return clip_l, clip_g, t5


def write_tokenizers(folder: Path) -> None:
    """Write `tokenizer/` and `tokenizer_2/` (CLIP) and `tokenizer_3/` (T5) into `folder`.

    The folders are made where they are missing; files of the same name are replaced, each in one move.
    """
    merges = learn_merges(word for phrase in words() for word in re.findall("[a-z]+", phrase))
    vocabulary = json.dumps(clip_vocabulary(merges), ensure_ascii=False)
    ranked = "".join(f"{left} {right}\n" for left, right in merges)
    tokenizer = json.dumps(t5_tokenizer(t5_pieces(words())), ensure_ascii=False, indent=1)
    texts = {Path(T5_FOLDER) / "tokenizer.json": f"{tokenizer}\n"}
    for name in CLIP_FOLDERS:
        texts[Path(name) / "vocab.json"] = vocabulary
        texts[Path(name) / "merges.txt"] = f"#version: 0.2\n{ranked}"
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with written(folder / path, overwrite=True) as new:
            new.write_text(text, encoding="utf-8")


def words() -> list[str]:
    """Every word that a caption can hold, hyphens included, in alphabetical order."""
    tables = (SIZE_WORDS, PLACE_WORDS, RELATION_WORDS, COLOUR_WORDS, KIND_WORDS)
    phrases = [wording for table in tables for wordings in table.values() for wording in wordings]
    phrases += [template.format(a="", plain="") for template in BACKGROUND_WORDS]
    phrases += [*OPENINGS, *FILLERS, *BACKGROUNDS, *KINDS, TWO]
    phrases += [plural(noun) for noun in (*KINDS, *(noun for nouns in KIND_WORDS.values() for noun in nouns))]
    return sorted({word for phrase in phrases for word in phrase.split()})


def learn_merges(corpus: Iterable[str]) -> list[Merge]:
    """Byte-pair merges, the most frequent pair first, until each word is a single symbol.

    Greedy learning and not a list of prefixes: a tokenizer applies the merges by rank to all words
    alike, and only an order that was learned on all of them at once leads each word to its end.

    Args:
        corpus: lower-case words; each counts once.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(corpus))]
    merges: list[Merge] = []
    while pairs := Counter(pair for symbols in spelled for pair in pairwise(symbols)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))  # among equals, the alphabet decides
        merges.append(best)
        spelled = [_merge(symbols, best) for symbols in spelled]
    return merges


def clip_vocabulary(merges: list[Merge]) -> dict[str, int]:
    """Symbol to id, in the order of the official file: bytes, bytes that end a word, merges, specials."""
    symbols = byte_symbols()
    symbols += [symbol + "</w>" for symbol in symbols]
    symbols += ["".join(merge) for merge in merges]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    return {symbol: index for index, symbol in enumerate(symbols)}


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte (GPT-2), in CLIP's order of ids.

    The bytes that print in Latin-1 stand for themselves and come first, "!" having id 0; the other
    68 follow as the characters from U+0100 on.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(code) for code in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def t5_pieces(vocabulary: list[str]) -> list[tuple[str, float]]:
    """Pieces with their log probabilities: specials, words behind a ▁, then single characters.

    A character costs more than any word, so that the likeliest segmentation takes whole words.
    """
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    whole = [(f"▁{word}", -5.0) for word in vocabulary]
    characters = "▁" + string.ascii_lowercase + string.digits + string.punctuation
    single = [(character, -10.0) for character in characters]
    return [*specials, *whole, *single]


def t5_tokenizer(pieces: list[tuple[str, float]]) -> dict[str, object]:
    """The content of a `tokenizer.json`, built as T5's own.

    Its normaliser differs: NFKC and one space for any white space stand in for T5's table of
    characters, and letters are made small since the captions have no others.
    """
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(index, piece) for index, (piece, _) in enumerate(pieces[:3])],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFKC"},
                {"type": "Lowercase"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Strip", "strip_left": True, "strip_right": True},
            ],
        },
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, end, second, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
    }


def _ids(encoder: CLIPTokenizer | T5Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids without specials."""
    return [encoded.ids for encoded in encoder.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _padded(rows: list[list[int]], pad: int, length: int | None) -> Tensor:
    """Rows of unequal length as one tensor, (B, L)."""
    longest = max(map(len, rows))
    if length is not None and longest > length:
        raise ValueError(f"a caption has {longest} tokens, more than the {length} asked for")
    return torch.tensor([row + [pad] * ((length or longest) - len(row)) for row in rows])


def _merge(symbols: list[str], pair: Merge) -> list[str]:
    """`symbols` with each occurrence of the pair joined, from left to right."""
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def _special(index: int, content: str) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content, **flags}
