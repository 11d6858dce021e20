"""Choosing taps by glob, list or predicate, and naming what was probably meant."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from functools import cache

from .errors import TapError
from .logits import LOGITS

Pattern = str | Sequence[str] | Callable[[str], bool]
"""A glob, a list of globs, or a function of a tap's name."""

SHOWN = 6  # near matches in a message


def match(names: Collection[str], patterns: Iterable[Pattern]) -> dict[str, list[str]]:
    """The names that each pattern chooses.

    In a glob, `*` stands for any part of one segment of a path, `**` for anything, dots included, `?` for
    one character and `[0-3]` for one of several: `joint_blocks.*.x` is the image tokens after each block and
    `**.attn.ln_q` the queries of both streams in all blocks. Logits of attentions take much memory, and are
    chosen only by a glob that ends in `logits`, or by a predicate.

    Args:
        names: of all taps.
        patterns: globs, lists of globs, or predicates.

    Returns:
        The chosen names, in the order of `names`, under each pattern as it was given (a predicate under its
        name).

    Raises:
        TapError: no pattern, or one that chooses nothing; the message names near matches.
    """
    chosen: dict[str, list[str]] = {}
    for pattern in _flat(patterns):
        if callable(pattern):
            label, found = getattr(pattern, "__name__", repr(pattern)), list(filter(pattern, names))
        else:
            label, found = pattern, [name for name in names if _chooses(pattern, name)]
        if not found:
            raise TapError(f"{label!r} matches no tap" + near(label, names))
        chosen[label] = list(dict.fromkeys(chosen.get(label, []) + found))
    if not chosen:
        raise TapError("no tap was asked for: give a name, a glob such as 'joint_blocks.*.x', or a predicate")
    return chosen


def _chooses(glob: str, name: str) -> bool:
    asked_for = not name.endswith(LOGITS) or glob.endswith(LOGITS)
    return asked_for and matches(glob, name)


def matches(pattern: str, name: str) -> bool:
    """Whether a glob fits the whole of a name."""
    return _regex(pattern).fullmatch(name) is not None


def near(word: str, names: Collection[str]) -> str:
    """The end of a message that says what may have been meant: "; did you mean ...?", or nothing."""
    below = [name for name in names if name.startswith(f"{word}.") and "." not in name[len(word) + 1 :]]
    # A glob is compared with names whose numbers are `*` too, or the blocks would crowd out other modules.
    general = (
        {re.sub(r"(?<=\.)\d+(?=\.)", "*", name): name for name in reversed(list(names))}
        if "*" in word
        else {}
    )
    close = get_close_matches(word, list(general) or list(names), n=SHOWN, cutoff=0.6)
    meant = (below or close)[:SHOWN]
    return f"; did you mean {', '.join(meant)}?" if meant else ""


def _flat(patterns: Iterable[Pattern]) -> Iterable[str | Callable[[str], bool]]:
    for pattern in patterns:
        if isinstance(pattern, str) or callable(pattern):
            yield pattern
        else:
            yield from pattern


@cache
def _regex(glob: str) -> re.Pattern[str]:
    tokens = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]+\])", glob)
    regex = (
        tokens.get(p) or (p.replace("[!", "[^", 1) if p[:1] == "[" and p[-1:] == "]" else re.escape(p))
        for p in parts
    )
    return re.compile("".join(regex))
