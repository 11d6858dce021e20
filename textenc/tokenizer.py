"""Prompts to token ids, with a record of where each token came from and of what was cut.

CLIP's window is 77 tokens, start and end included. T5 has no limit of its own. How a prompt is read:

    policy             CLIP                         T5                                as in
    "reference"        the first 75 tokens          all tokens, padded to 77          Stability, its lengths
    "diffusers"        the first 75 tokens          the first 255, padded to 256      diffusers, every token
    "reference-exact"  whole words, to 75 tokens,   the first 226 characters,         Stability, every token
                       `(weights:1.3)` taken out    padded to 77

"reference" reads the whole text: that Stability's code drops parentheses, and all but 226 characters,
comes with the tokenizer it was given. "reference-exact" is there to repeat its numbers. Both references
leave the pads to be attended, so the length matters.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from tokenizers import Tokenizer

from . import reference
from .errors import VocabularyError
from .vocabulary import END, START, read_clip, read_t5

CLIP_LENGTH = 77  # positions of every released CLIP text encoder

Span = tuple[int, int]  # characters [start, end) of a prompt
Kind = Literal["start", "text", "end", "pad"]


class Token(NamedTuple):
    """One token of a prompt."""

    id: int
    piece: str  # as the vocabulary spells it: "cat</w>" (CLIP), "▁cat", "<unk>" (T5)
    kind: Kind
    span: Span | None  # the characters of the prompt that it stands for; None for what was added


class Tokens(NamedTuple):
    """A prompt as one encoder reads it."""

    tokens: tuple[Token, ...]
    cut: Span | None  # the characters of the prompt that no token stands for since there was no room

    @property
    def ids(self) -> list[int]:
        """The ids alone."""
        return [token.id for token in self.tokens]


@dataclass(frozen=True)
class PromptPolicy:
    """How a prompt is read, and how much of it; see the module's table."""

    name: str
    t5_min: int  # pad to so many tokens, </s> included
    t5_max: int | None  # cut to so many, </s> included; None reads all
    t5_characters: int | None = None  # cut the prompt to so many characters first
    word_by_word: bool = False  # read prompts as Stability's own tokenizer does
    pad_is_special: bool = (
        False  # find CLIP-G's pad, "!", in the text as transformers does: "no!" is no, <pad>
    )


POLICIES = {
    "reference": PromptPolicy("reference", t5_min=77, t5_max=None),
    "diffusers": PromptPolicy("diffusers", t5_min=256, t5_max=256, pad_is_special=True),
    "reference-exact": PromptPolicy(
        "reference-exact", t5_min=77, t5_max=None, t5_characters=226, word_by_word=True
    ),
}


def prompt_policy(policy: str | PromptPolicy) -> PromptPolicy:
    """Look a policy up by its name; one of the caller's own passes through.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(policy, PromptPolicy):
        return policy
    if policy not in POLICIES:
        raise ValueError(f"no prompt policy {policy!r}: choose one of {', '.join(POLICIES)}")
    return POLICIES[policy]


class CLIPTokenizer:
    """CLIP's tokenizer: <start> tokens <end> and pads, 77 in all.

    Args:
        tokenizer: CLIP's vocabulary; `read_clip` reads one.
        pad_with_end: pad with the end token (CLIP-L) or with id 0 (CLIP-G, whose id 0 is "!").

    Raises:
        VocabularyError: the special tokens are missing, or <|endoftext|> has not the largest id, by which
            the encoder finds the end of the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, pad_with_end: bool) -> None:
        self.tokenizer = tokenizer
        self.start = _special(tokenizer, START, "start")
        self.end = _special(tokenizer, END, "end")
        self.pad = _special(tokenizer, END if pad_with_end else tokenizer.id_to_token(0), "pad")
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
        if largest != self.end.id:
            raise VocabularyError(
                f"{END} has id {self.end.id}, but the vocabulary goes on to {largest}: CLIP finds the end of "
                "the text by its largest id, so the vocabulary must not be extended"
            )

    @classmethod
    def load(cls, path: Path | str, *, pad_with_end: bool) -> "CLIPTokenizer":
        """Read a folder with vocab.json and merges.txt or tokenizer.json, or the latter file.

        Raises:
            VocabularyError: nothing readable is there.
        """
        return cls(read_clip(path), pad_with_end=pad_with_end)

    def __call__(self, text: str, policy: str | PromptPolicy = "reference") -> Tokens:
        """Tokenize one prompt of any length, the empty one included.

        Raises:
            ValueError: the text cannot be encoded as UTF-8, or the policy is unknown.
        """
        check_text(text)
        policy = prompt_policy(policy)
        room = CLIP_LENGTH - 2
        if policy.word_by_word:
            words = list(_by_words(self.tokenizer, text))
            content, taken = [token for word in words for token in word], reference.fill_window(words, room)
        else:
            content = _tokens(self._pad_aware if policy.pad_is_special else self.tokenizer, text)
            taken = min(room, len(content))
        pads = (self.pad,) * (room - taken)
        return Tokens((self.start, *content[:taken], self.end, *pads), _cut(text, content, taken))

    @cached_property
    def _pad_aware(self) -> Tokenizer:
        """The tokenizer with its pad found in the text before anything else, as transformers makes it."""
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.add_special_tokens([self.pad.piece])
        return tokenizer


class T5Tokenizer:
    """T5's tokenizer: tokens </s> and pads, as many as the policy says.

    Args:
        tokenizer: T5's vocabulary; `read_t5` reads one.

    Raises:
        VocabularyError: </s> or <pad> is missing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = _special(tokenizer, "</s>", "end")
        self.pad = _special(tokenizer, "<pad>", "pad")

    @classmethod
    def load(cls, path: Path | str) -> "T5Tokenizer":
        """Read a folder with tokenizer.json or spiece.model, or one of these files.

        Raises:
            VocabularyError: nothing readable is there.
        """
        return cls(read_t5(path))

    def __call__(self, text: str, policy: str | PromptPolicy = "reference") -> Tokens:
        """Tokenize one prompt of any length, the empty one included.

        Raises:
            ValueError: the text cannot be encoded as UTF-8, or the policy is unknown.
        """
        check_text(text)
        policy = prompt_policy(policy)
        read = text[: policy.t5_characters]
        if policy.word_by_word:
            content = [token for word in _by_words(self.tokenizer, read) for token in word]
        else:
            content = _tokens(self.tokenizer, read)
        taken = len(content) if policy.t5_max is None else min(len(content), policy.t5_max - 1)
        cut = _cut(text, content, taken)
        if cut is None and len(read) < len(text):
            cut = (len(read), len(text))
        return self.padded(Tokens((*content[:taken], self.end), cut), policy.t5_min)

    def padded(self, tokens: Tokens, length: int) -> Tokens:
        """Pad to at least `length` tokens."""
        return tokens._replace(tokens=tokens.tokens + (self.pad,) * (length - len(tokens.tokens)))


def check_text(text: object) -> None:
    """Refuse what no tokenizer can read. Control characters and the empty text are fine.

    Raises:
        ValueError: it is no string, or holds half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise ValueError(f"a prompt must be a string, got {type(text).__name__}")
    broken = next((i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff"), None)
    if broken is not None:
        raise ValueError(
            f"character {broken} of the prompt is half of a surrogate pair: no text in UTF-8 has it"
        )


def _special(tokenizer: Tokenizer, piece: str | None, kind: Kind) -> Token:
    """A token that is added to every prompt."""
    index = None if piece is None else tokenizer.token_to_id(piece)
    if piece is None or index is None:
        raise VocabularyError(f"the vocabulary has no {piece}: it belongs to another kind of encoder")
    return Token(index, piece, kind, None)


def _tokens(
    tokenizer: Tokenizer, text: str, span: Callable[[int, int], Span] = lambda a, b: (a, b)
) -> list[Token]:
    """The tokens of a text, nothing added; `span` says where its characters are in the prompt."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return [
        Token(index, tokenizer.id_to_token(index) or "", "text", span(*offsets))
        for index, offsets in zip(encoding.ids, encoding.offsets, strict=True)
    ]


def _by_words(tokenizer: Tokenizer, text: str) -> Iterator[list[Token]]:
    """The tokens of each word as the reference's own tokenizer parts them."""
    for word in reference.words(text):
        ends = [word[0].start, *(char.end for char in word)]  # the border before each character, and the last
        yield _tokens(
            tokenizer,
            "".join(char.char for char in word),
            lambda start, end, ends=ends: (ends[start], ends[end]),
        )


def _cut(text: str, content: list[Token], taken: int) -> Span | None:
    """From the first token that was left out to the end of the text."""
    left_out = content[taken:]
    return (left_out[0].span[0], len(text)) if left_out and left_out[0].span is not None else None
