"""Finding a word of the prompt among the context tokens."""

import re
from collections.abc import Iterable, Iterator, Sequence

from textenc import ContextToken, Encoding, Prompt
from textenc.prompt import EncoderName

from ..taps.match import near

ENCODERS: tuple[EncoderName, ...] = ("clip_l", "clip_g", "t5")
MARKS = {"start": "<start>", "end": "<end>", "pad": "<pad>"}
ARTICLES = frozenset({"a", "an", "the"})


class WordError(ValueError):
    """A word that is not in the prompt, or that no encoder read."""


def find_word(
    encoding: Encoding, word: str, *, encoder: EncoderName | None = None, occurrence: int | None = None
) -> tuple[int, ...]:
    """The positions of a word in the context.

    Every position is counted once: one within CLIP's window holds the pieces of CLIP-L and CLIP-G side by
    side.

    Args:
        encoding: one encoded prompt.
        word: a word or several, as they stand in the prompt; upper and lower case are the same.
        encoder: only tokens of this one; None takes all that read the word.
        occurrence: which, from 0, where the word comes several times; None takes all.

    Returns:
        Indices into the context, rising.

    Raises:
        WordError: the word is not in the prompt (near matches are named), or was cut off.
    """
    if encoder is not None and encoder not in ENCODERS:
        raise WordError(f"encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
    names = ENCODERS if encoder is None else (encoder,)
    prompt = encoding.prompts[0]
    spans = {name: _spans(prompt.of(name), word, occurrence) for name in names}
    if not any(spans.values()):
        raise WordError(_not_there(prompt, word, names, occurrence))
    positions = {
        token.position
        for token in encoding.tokens[0]
        if token.kind == "text" and token.span is not None and token.encoder in names
        for start, end in spans[token.encoder]
        if token.span[0] < end and start < token.span[1]
    }
    if not positions:
        notes = [note for note in encoding.notes if note.encoder in names and note.cut]
        cut = "; ".join(f"{note.encoder} stopped at {note.cut[:40]!r}" for note in notes)
        reason = cut or f"there are no tokens of {', '.join(names)}"
        raise WordError(f"{word!r} is in the prompt, but no encoder read it: {reason}")
    return tuple(sorted(positions))


def check_words(prompt: Prompt, words: Iterable[str]) -> None:
    """See that words stand in a prompt, before it is encoded; whether they were read, `find_word` tells.

    Raises:
        WordError: one does not; near matches are named.
    """
    for word in words:
        if not any(_spans(prompt.of(name), word, None) for name in ENCODERS):
            raise WordError(_not_there(prompt, word, ENCODERS, None))


def words_of(encoding: Encoding) -> list[str]:
    """The words of a prompt that an encoder read, in their order, each once, articles left out."""
    found = dict.fromkeys(word for name in ENCODERS for word in _words(encoding.prompts[0].of(name)))
    return [word for word in found if word.lower() not in ARTICLES and _was_read(encoding, word)]


def token_labels(encoding: Encoding) -> list[str]:
    """A name for each position of the context: encoder and piece, start, end and pads marked; (M,).

    A position within CLIP's window reads "clip_l circle</w> | clip_g circle</w>", and one where no encoder
    put a token "(nothing)".
    """
    labels: list[list[str]] = [[] for _ in range(encoding.context.shape[1])]
    for token in encoding.tokens[0]:
        labels[token.position].append(f"{token.encoder} {_piece(token)}")
    return [" | ".join(one) or "(nothing)" for one in labels]


def _piece(token: ContextToken) -> str:
    return MARKS.get(token.kind, token.piece)


def _spans(text: str, word: str, occurrence: int | None) -> list[tuple[int, int]]:
    """Where the word stands in a text, as a whole word."""
    if not word.strip():
        return []
    whole = rf"(?<!\w){re.escape(word.strip())}(?!\w)"
    found = [match.span() for match in re.finditer(whole, text, re.IGNORECASE)]
    return found if occurrence is None else found[occurrence : occurrence + 1] if occurrence >= 0 else []


def _not_there(prompt: Prompt, word: str, names: Sequence[EncoderName], occurrence: int | None) -> str:
    texts = dict.fromkeys(prompt.of(name) for name in names)
    times = max(len(_spans(text, word, None)) for text in texts)
    if times:
        return (
            f"{word!r} is {times} times in the prompt: occurrence must be 0 to {times - 1}, got {occurrence}"
        )
    there = list(dict.fromkeys(one for text in texts for one in _words(text)))
    return f"{word!r} is not in the prompt {' / '.join(map(repr, texts))}" + near(word, there)


def _was_read(encoding: Encoding, word: str) -> bool:
    try:
        return bool(find_word(encoding, word))
    except WordError:
        return False


def _words(text: str) -> Iterator[str]:
    return iter(re.findall(r"\w+(?:['-]\w+)*", text))
