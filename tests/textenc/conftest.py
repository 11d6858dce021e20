"""Small vocabularies and encoders, made here, and the goldens of the original implementation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from textenc import CLIP, T5, CLIPConfig, CLIPTokenizer, T5Config, T5Tokenizer

MERGES = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("r", "e"), ("re", "d</w>")]
SPECIALS = ["<|startoftext|>", "<|endoftext|>"]
PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁cat", -1.0), ("▁dog", -1.0), ("▁", -2.0)]

Encoder = TypeVar("Encoder", CLIP, T5)


class Golden(NamedTuple):
    config: dict
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]


@pytest.fixture(scope="session")
def golden(shared_reference: Path) -> Callable[[str], Golden]:
    """A file of weights, inputs and activations that the original implementation made."""

    def read(name: str) -> Golden:
        with safe_open(shared_reference / "parity" / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            config = json.loads(file.metadata()["config"])
        weights = {k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")}
        return Golden(config, tensors, weights)

    return read


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `clip/` (vocab.json, merges.txt) and `t5/` (tokenizer.json)."""
    folder = tmp_path_factory.mktemp("vocabularies")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(code) for code in printable] + [chr(256 + n) for n in range(68)]
    symbols += [symbol + "</w>" for symbol in symbols] + ["".join(merge) for merge in MERGES] + SPECIALS
    (folder / "clip").mkdir()
    vocab = json.dumps({symbol: index for index, symbol in enumerate(symbols)})
    (folder / "clip" / "vocab.json").write_text(vocab, encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in MERGES), ""]
    (folder / "clip" / "merges.txt").write_text("\n".join(lines), encoding="utf-8")

    letters = [(chr(code), -5.0) for code in range(ord("a"), ord("z") + 1)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [{"id": i, "content": piece, **flags} for i, (piece, _) in enumerate(PIECES[:3])],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": PIECES + letters, "byte_fallback": False},
    }
    (folder / "t5").mkdir()
    (folder / "t5" / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer_l(vocabularies: Path) -> CLIPTokenizer:
    return CLIPTokenizer.load(vocabularies / "clip", pad_with_end=True)


@pytest.fixture(scope="session")
def tokenizer_g(vocabularies: Path) -> CLIPTokenizer:
    return CLIPTokenizer.load(vocabularies / "clip", pad_with_end=False)


@pytest.fixture(scope="session")
def tokenizer_t5(vocabularies: Path) -> T5Tokenizer:
    return T5Tokenizer.load(vocabularies / "t5")


@pytest.fixture
def clip_l(tokenizer_l: CLIPTokenizer) -> CLIP:
    config = CLIPConfig(tokenizer_l.end.id + 1, 77, 8, 2, 2, 16, None, "quick_gelu")
    return small(CLIP(config), 1)


@pytest.fixture
def clip_g(tokenizer_g: CLIPTokenizer) -> CLIP:
    config = CLIPConfig(tokenizer_g.end.id + 1, 77, 12, 2, 2, 24, 12, "gelu")
    return small(CLIP(config), 2)


@pytest.fixture
def t5() -> T5:
    return small(T5(T5Config(40, 24, 2, 2, 8, 32, 32)), 3)


def small(module: Encoder, seed: int) -> Encoder:
    """The module, with weights drawn from a seed and without gradients."""
    module.initialize(torch.Generator().manual_seed(seed))
    return module.requires_grad_(False)
