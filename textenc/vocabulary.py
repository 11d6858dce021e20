"""Vocabulary files into `tokenizers.Tokenizer`s: CLIP's byte-level BPE and T5's unigram model.

A vocabulary is a folder, or one file of it:

    CLIP    vocab.json and merges.txt, or tokenizer.json
    T5      tokenizer.json, or spiece.model

Where a folder holds both kinds, the first is read. CLIP's tokenizer has variants that differ for rare
text (transformers' slow one splits Chinese into characters, OpenAI's repairs text with ftfy first); from
vocab.json and merges.txt, which say nothing about it, transformers' fast one is built.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from .errors import VocabularyError
from .sentencepiece import read_sentencepiece

START, END = "<|startoftext|>", "<|endoftext|>"  # CLIP's

# Contractions, runs of letters, single digits, runs of anything else (OpenAI's simple_tokenizer.py).
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def read_clip(path: Path | str) -> Tokenizer:
    """Read CLIP's vocabulary from a folder, or from its tokenizer.json.

    Raises:
        VocabularyError: no such file, or an unreadable one.
    """
    path = Path(path)
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return _clip_from_merges(path / "vocab.json", path / "merges.txt")
    return _from_json(_find(path, "tokenizer.json", needs="vocab.json and merges.txt, or tokenizer.json"))


def read_t5(path: Path | str) -> Tokenizer:
    """Read T5's vocabulary from a folder, or from its tokenizer.json or spiece.model.

    Raises:
        VocabularyError: no such file, or an unreadable one.
    """
    path = Path(path)
    spiece_only = (path / "spiece.model").is_file() and not (path / "tokenizer.json").is_file()
    if path.suffix == ".model" or spiece_only:
        return _unigram(_find(path, "spiece.model", needs="spiece.model"))
    return _from_json(_find(path, "tokenizer.json", needs="tokenizer.json or spiece.model"))


def _find(path: Path, name: str, *, needs: str) -> Path:
    """The file itself, or `name` in the folder."""
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise VocabularyError(f"no vocabulary at {path}: expected a folder with {needs}")
    return file


def _from_json(file: Path) -> Tokenizer:
    """A tokenizer.json, without the truncation and padding that some of them switch on."""
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # `tokenizers` raises nothing more specific
        raise VocabularyError(f"{file} is not a readable tokenizer.json: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _clip_from_merges(vocab_file: Path, merges_file: Path) -> Tokenizer:
    """CLIP's tokenizer around a vocabulary: NFC, white space collapsed, lower case, words, bytes, BPE."""
    vocab = _read_vocab(vocab_file)
    merges = _read_merges(merges_file)
    try:
        model = models.BPE(
            vocab, merges, unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>"
        )
        tokenizer = Tokenizer(model)
    except Exception as error:  # a merge of symbols that are not in the vocabulary
        raise VocabularyError(f"{merges_file} does not fit {vocab_file.name}: {error}") from error
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    # Found in the text before anything else, as in both references: a prompt may spell them out.
    tokenizer.add_special_tokens([piece for piece in (START, END) if piece in vocab])
    return tokenizer


def _read_vocab(file: Path) -> dict[str, int]:
    """vocab.json: symbol to id."""
    try:
        vocab = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VocabularyError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(vocab, dict) or not all(type(index) is int and index >= 0 for index in vocab.values()):
        raise VocabularyError(f"{file} should map each symbol to its id")
    return vocab


def _read_merges(file: Path) -> list[tuple[str, str]]:
    """merges.txt: two symbols to a line, the most important first, below a line with the version."""
    try:
        lines = file.read_text(encoding="utf-8").split(
            "\n"
        )  # not splitlines: some symbols are line ends to it
    except (OSError, ValueError) as error:
        raise VocabularyError(f"{file} is not readable text: {error}") from error
    numbered = enumerate((line.rstrip("\r") for line in lines), start=1)
    merges = [
        (n, line.split(" ")) for n, line in numbered if line and not (n == 1 and line.startswith("#version"))
    ]
    for number, symbols in merges:
        if len(symbols) != 2:
            raise VocabularyError(
                f"{file}, line {number}: expected two symbols, got {' '.join(symbols)[:40]!r}"
            )
    return [(left, right) for _, (left, right) in merges]


def _unigram(file: Path) -> Tokenizer:
    """The tokenizer that T5's tokenizer.json describes, from the sentencepiece file behind it.

    The 100 sentinels, <extra_id_99> to <extra_id_0>, are T5's own and follow the file's pieces.
    """
    model = read_sentencepiece(file)
    sentinels = [f"<extra_id_{n}>" for n in reversed(range(100))]
    pieces = [*model.pieces, *((sentinel, 0.0) for sentinel in sentinels)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=model.unk_id, byte_fallback=False))
    steps: list[normalizers.Normalizer] = [
        normalizers.Strip(left=False, right=True),
        normalizers.Replace(Regex(" {2,}"), "▁"),
    ]
    if model.charsmap:
        steps.insert(0, normalizers.Precompiled(model.charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.add_special_tokens(model.specials)
    tokenizer.add_special_tokens(  # which take the spaces around them along
        [AddedToken(sentinel, lstrip=True, rstrip=True, normalized=False) for sentinel in sentinels]
    )
    return tokenizer
