"""Two tiny vocabularies for the reference runs, written out by hand: byte-pair for CLIP, unigram for T5."""

import json
from pathlib import Path

from transformers import CLIPTokenizer, T5TokenizerFast

WORDS = ("a", "red", "blue", "circle", "square", "on", "the", "left", "of", "white", "background", "small")
SYMBOLS = "!\"'(),-.:0123456789abcdefghijklmnopqrstuvwxyz"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def clip_files(folder: Path) -> None:
    """Write vocab.json and merges.txt: every symbol, merges that build each word left to right."""
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            if (pair := (pieces[0], pieces[1])) not in merges:
                merges.append(pair)
            pieces[:2] = ["".join(pair)]
    tokens = [*SYMBOLS, *(f"{symbol}</w>" for symbol in SYMBOLS), *("".join(pair) for pair in merges)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, BOS, EOS]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, indent=0) + "\n", "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


def clip(folder: Path, pad_token: str) -> CLIPTokenizer:
    """The reference's tokenizer over those files; CLIP-L pads with the end token, CLIP-G with "!"."""
    return CLIPTokenizer.from_pretrained(folder, pad_token=pad_token, model_max_length=77)


def t5(folder: Path) -> T5TokenizerFast:
    """The reference's tokenizer over a unigram vocabulary; writes tokenizer.json."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    vocab += [(f"▁{word}", -3.0 - i / 10) for i, word in enumerate(WORDS)]
    vocab += [(symbol, -6.0 - i / 20) for i, symbol in enumerate(SYMBOLS)]
    tokenizer = T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=512)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(pretty=True) + "\n", "utf-8")
    return tokenizer
