"""How Stability's own tokenizer reads a prompt, token by token (`SDTokenizer` in its other_impls.py).

It came from ComfyUI and reads `(words:1.3)` as a weight. The weights are then not used, but the
parentheses and numbers are gone from the text. What is left is split at spaces, each word is tokenized
by itself, and a window of tokens is filled word by word.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

LARGE_WORD = 8  # tokens: a word of so many may be split at the end of a window, a shorter one may not


@dataclass(frozen=True)
class Char:
    """A character and where it came from; an escaped parenthesis has left its backslash behind."""

    char: str
    start: int
    end: int
    escaped: bool = False

    def is_plain(self, char: str) -> bool:
        """Whether this is `char`, not escaped."""
        return self.char == char and not self.escaped


Text = Sequence[Char]


def words(prompt: str) -> Iterator[Text]:
    """Split a prompt into the words that are tokenized: without weights, at single spaces and newlines."""
    for segment in _unweighted(_unescape(prompt)):
        for is_space, word in groupby(segment, key=lambda char: char.char in " \n"):
            if not is_space:
                yield list(word)


def fill_window(words: Sequence[Sequence[object]], size: int) -> int:
    """Count the tokens that the first window of `size` takes, of words given as their tokens.

    The first word that does not fit ends the window, unless it is large: then its beginning is taken.
    """
    taken = 0
    for word in words:
        if taken + len(word) > size:
            return size if len(word) >= LARGE_WORD else taken
        taken += len(word)
    return taken


def _unescape(prompt: str) -> list[Char]:
    """The prompt by characters, an escaped parenthesis being one."""
    text: list[Char] = []
    for index, char in enumerate(prompt):
        if char in "()" and text and text[-1].is_plain("\\"):
            text[-1] = Char(char, index - 1, index + 1, escaped=True)
        else:
            text.append(Char(char, index, index + 1))
    return text


def _unweighted(text: Text) -> Iterator[Text]:
    """The segments of a text, without the parentheses around them and the `:number` at their end."""
    levels = [_groups(text)]  # not by recursion: a prompt may open thousands of parentheses
    while levels:
        group = next(levels[-1], None)
        if group is None:
            levels.pop()
        elif len(group) >= 2 and group[0].is_plain("(") and group[-1].is_plain(")"):
            levels.append(_groups(_without_number(group[1:-1])))
        else:
            yield group


def _groups(text: Text) -> Iterator[Text]:
    """Cut a text into its outermost (...) and what stands between them.

    A stray ) lowers the level below zero, where the next ( opens nothing: the reference does so too.
    """
    group: list[Char] = []
    level = 0
    for char in text:
        if char.is_plain("("):
            if level == 0 and group:
                yield group
                group = []
            level += 1
        group.append(char)
        if char.is_plain(")"):
            level -= 1
            if level == 0:
                yield group
                group = []
    if group:
        yield group


def _without_number(text: Text) -> Text:
    """Cut off a last `:1.3`; what is no number stays."""
    colon = max((index for index, char in enumerate(text) if char.char == ":"), default=0)
    if colon > 0:
        try:
            float("".join(char.char for char in text[colon + 1 :]))
        except ValueError:
            return text
        return text[:colon]
    return text
