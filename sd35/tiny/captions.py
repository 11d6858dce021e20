"""What a scene is called: captions in many wordings, and their meaning read back.

`caption` says something true of a scene and leaves out, at random, some of what is usual in it: a place
in the centre, a large or medium size, white behind it, the first shape left of the second; colours, of
which none is usual, too. So what a caption leaves open is one picture and no average of many: "a star" is
one in the centre, and large. `parse` is the inverse of `caption` as far as one exists: it gives back what
a caption claims.
"""

import re
from dataclasses import dataclass

import torch

from .scenes import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    RELATIONS,
    Scene,
    Shape,
    choose,
    is_held_out,
    random_scene,
    usual_scene,
)

SIZE_WORDS = {
    "small": ("small", "small", "small", "tiny", "little"),
    "medium": ("medium", "medium", "medium-sized"),
    "large": ("large", "large", "big"),
}
"""How each size is called; what stands twice is said twice as often."""

PLACE_WORDS = {
    "left": ("on the left", "on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right", "on the right side", "at the right"),
    "top": ("at the top", "at the top", "on the top"),
    "bottom": ("at the bottom", "at the bottom", "on the bottom"),
    "centre": ("in the centre", "in the center", "in the middle"),
}
RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
}
COLOUR_WORDS = {"grey": ("grey", "gray"), "purple": ("purple", "purple", "violet")}
KIND_WORDS = {"circle": ("circle", "circle", "circle", "disc"), "cross": ("cross", "cross", "cross", "plus")}

OPENINGS = ("", "", "", "there is", "a picture of", "an image of", "a drawing of")
BACKGROUND_WORDS = ("on {a} background", "on {a} background", "with {a} background", "on {plain}")

TWO = "two"  # of a kind, side by side

# How often an attribute that has this value is left out: in a usual caption, and in one that says little.
# What has no entry is always said.
UNSAID_SIZE = {"large": (0.45, 0.95), "medium": (0.25, 0.5)}
UNSAID_PAIR_SIZE = {"medium": (0.8, 0.97)}
UNSAID_PLACE = {"centre": (0.5, 0.95)}
UNSAID_BACKGROUND = {"white": (0.45, 0.95), "grey": (0.03, 0.05), "black": (0.03, 0.05)}
UNSAID_COLOUR = (0.06, 0.4)
UNSAID_RELATION = (0.15, 0.7)

FILLERS = frozenset(["a", "an", "the", "there", "is", "are", "picture", "image", "drawing", "of", "and"])
"""Words that claim nothing."""


@dataclass(frozen=True)
class ShapeClaim:
    """What a caption says of one shape; None is left open."""

    kind: str
    colour: str | None = None
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Claim:
    """What a caption says of a picture: just these shapes are in it; None is left open.

    Two shapes stand in the order in which they are named, and `relation` leads from the first to
    the second.
    """

    shapes: tuple[ShapeClaim, ...]
    background: str | None = None
    relation: str | None = None


def caption(scene: Scene, generator: torch.Generator, *, complete: bool = False, brief: bool = False) -> str:
    """Put a scene into words, in one of many ways.

    Args:
        scene: what to describe.
        generator: chooses the wording and what is left out.
        complete: mention all that `is_held_out` looks at, as a prompt for a held-out scene must.
        brief: say little, as people do: leave out most of what is usual, and often the colour.

    Returns:
        Lower-case text without a full stop, such as "a small red circle on the left on a white background".
    """
    if len(scene.shapes) == 2 and _happens(0.5, generator):
        scene = scene.flipped()
    bare = not complete and len(scene.shapes) == 1 and _happens(0.08, generator)  # "red circle"
    opening = "" if bare else choose(OPENINGS, generator)
    describe = _one if len(scene.shapes) == 1 else _two
    body = describe(scene, generator, complete, brief)
    if bare:
        body = body.split(" ", 1)[1]
    words = [opening, body]
    if not _unsaid(UNSAID_BACKGROUND, scene.background, brief, generator):
        background = _word(COLOUR_WORDS, scene.background, generator)
        phrase = choose(BACKGROUND_WORDS, generator).format(a=_article(background), plain=background)
        words = (
            [phrase, *words] if phrase.startswith("on") and _happens(0.08, generator) else [*words, phrase]
        )
    return " ".join(word for word in words if word)


def held_out_prompts(n: int, *, shapes: int, seed: int) -> list[str]:
    """Prompts whose combination of attributes training never meets, under any wording or background.

    Args:
        n: how many, all different.
        shapes: 1 or 2, the number of shapes in each.
        seed: the same seed gives the same prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts: dict[str, None] = {}  # a set that keeps its order
    while len(prompts) < n:
        scene = random_scene(generator, shapes=shapes)
        if is_held_out(scene):
            prompts[caption(scene, generator, complete=True)] = None
    return list(prompts)


def held_out_in_turn(n: int, *, seed: int) -> list[str]:
    """`held_out_prompts` of one shape and of two, in turn."""
    singles, pairs = (held_out_prompts(-(-n // 2), shapes=shapes, seed=seed) for shapes in (1, 2))
    return [prompt for both in zip(singles, pairs, strict=True) for prompt in both][:n]


def open_prompts(n: int, *, seed: int) -> list[str]:
    """Prompts that say little, as people write them: "a star", "two red circles".

    Args:
        n: how many, all different.
        seed: the same seed gives the same prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts: dict[str, None] = {}
    while len(prompts) < n:
        prompts[caption(usual_scene(generator), generator, brief=True)] = None
    return list(prompts)


def parse(text: str) -> Claim:
    """What a caption claims. Letter case, commas and full stops do not matter.

    Raises:
        ValueError: the text names no shape or more than two, or holds words that captions do not use.
    """
    text = " ".join(re.sub(r"[.,]", " ", text.lower()).split())
    background, rest = _take_background(text)
    if re.search(rf"\b{TWO}\b", rest):
        claim = _claim(" ".join(_SINGULAR_OF.get(word, word) for word in rest.split()), text)
        return Claim((claim, claim), background)
    relation, parts = _take_relation(rest)
    if len(parts) > 2:
        raise ValueError(f"not a caption of one or two shapes: {text!r} (it names {len(parts)})")
    claims = tuple(_claim(part, text) for part in parts)
    if len(claims) == 2 and relation is None:
        relation = _implied_relation(*claims)
    return Claim(claims, background, relation)


def _happens(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < probability)


def _word(words: dict[str, tuple[str, ...]], meaning: str, generator: torch.Generator) -> str:
    return choose(words.get(meaning, (meaning,)), generator)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _unsaid(
    chances: dict[str, tuple[float, float]], value: str, brief: bool, generator: torch.Generator
) -> bool:
    """Whether an attribute of this value is left out."""
    return value in chances and _happens(chances[value][brief], generator)


def _noun(shape: Shape, generator: torch.Generator, *, size: bool, colour: bool, twice: bool = False) -> str:
    """Article (or "two"), size, colour and kind, the two in the middle where they are to be said."""
    kind = _word(KIND_WORDS, shape.kind, generator)
    words = [plural(kind) if twice else kind]
    if colour:
        words.insert(0, _word(COLOUR_WORDS, shape.colour, generator))
    if size:
        words.insert(0, choose(SIZE_WORDS[shape.size], generator))
    return f"{TWO} {' '.join(words)}" if twice else _article(" ".join(words))


def plural(noun: str) -> str:
    """Several of a kind: circles, crosses."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def _one(scene: Scene, generator: torch.Generator, complete: bool, brief: bool) -> str:
    (shape,) = scene.shapes
    size = complete or not _unsaid(UNSAID_SIZE, shape.size, brief, generator)
    colour = complete or not _happens(UNSAID_COLOUR[brief], generator)
    noun = _noun(shape, generator, size=size, colour=colour)
    if complete or not _unsaid(UNSAID_PLACE, shape.place, brief, generator):
        return f"{noun} {choose(PLACE_WORDS[shape.place], generator)}"
    return noun


def _two(scene: Scene, generator: torch.Generator, complete: bool, brief: bool) -> str:
    first = scene.shapes[0]
    if scene.are_twins():
        size = not _unsaid(UNSAID_PAIR_SIZE, first.size, brief, generator)
        colour = complete or not _happens(UNSAID_COLOUR[brief], generator)
        return _noun(first, generator, size=size, colour=colour, twice=True)
    nouns = [
        _noun(
            shape,
            generator,
            size=not _unsaid(UNSAID_PAIR_SIZE, shape.size, brief, generator),
            colour=complete or not _happens(UNSAID_COLOUR[brief], generator),
        )
        for shape in scene.shapes
    ]
    if not complete and scene.relation == "left of" and _happens(UNSAID_RELATION[brief], generator):
        return f"{nouns[0]} and {nouns[1]}"
    if _happens(0.12, generator):
        places = [choose(PLACE_WORDS[shape.place], generator) for shape in scene.shapes]
        return f"{nouns[0]} {places[0]} and {nouns[1]} {places[1]}"
    assert scene.relation is not None
    return f"{nouns[0]} {choose(RELATION_WORDS[scene.relation], generator)} {nouns[1]}"


def _meanings(words: dict[str, tuple[str, ...]], *plain: str) -> dict[str, str]:
    """From wording to meaning, the longest wordings first so that they are found first."""
    pairs = {wording: meaning for meaning, wordings in words.items() for wording in wordings}
    pairs |= {word: word for word in plain}
    return dict(sorted(pairs.items(), key=lambda pair: -len(pair[0])))


_COLOUR_OF = _meanings(COLOUR_WORDS, *BACKGROUNDS)
_KIND_OF = _meanings(KIND_WORDS, *KINDS)
_SIZE_OF = _meanings(SIZE_WORDS)
_PLACE_OF = _meanings(PLACE_WORDS)
_RELATION_OF = _meanings(RELATION_WORDS)
_SINGULAR_OF = {plural(kind): kind for kind in _KIND_OF} | {TWO: ""}


def _find(meanings: dict[str, str], text: str) -> tuple[str | None, str]:
    """The meaning of the first wording that occurs in `text`, and the text without it."""
    for wording, meaning in meanings.items():
        pattern = rf"(?<![\w-]){re.escape(wording)}(?![\w-])"
        if re.search(pattern, text):
            return meaning, " ".join(re.sub(pattern, " ", text, count=1).split())
    return None, text


def _take_background(text: str) -> tuple[str | None, str]:
    colours = "|".join(_COLOUR_OF)
    found = re.search(rf"\b(?:on|with) (?:an? ({colours}) background|({colours}))\b", text)
    if not found:
        return None, text
    return _COLOUR_OF[found[1] or found[2]], text[: found.start()] + text[found.end() :]


def _take_relation(text: str) -> tuple[str | None, list[str]]:
    """The relation, if one is named, and the text around it; else what `and` separates."""
    for wording, relation in _RELATION_OF.items():
        parts = re.split(rf"\b{wording}\b", text)
        if len(parts) == 2:
            return relation, parts
    return None, re.split(r"\band\b", text)


def _claim(part: str, text: str) -> ShapeClaim:
    place, part = _find(_PLACE_OF, part)
    kind, part = _find(_KIND_OF, part)
    colour, part = _find(_COLOUR_OF, part)
    size, part = _find(_SIZE_OF, part)
    unknown = [word for word in part.split() if word not in FILLERS]
    if kind is None or unknown or colour not in (None, *COLOURS):
        raise ValueError(
            f"not a caption of one or two shapes: {text!r} "
            + (
                f"(not understood: {' '.join(unknown)!r})"
                if unknown
                else "(a shape lacks its kind or has an odd colour)"
            )
        )
    return ShapeClaim(kind, colour, size, place)


def _implied_relation(first: ShapeClaim, second: ShapeClaim) -> str | None:
    """A shape on the left and one on the right are left of each other, without its being said."""
    for relation, places in RELATIONS.items():
        if (first.place, second.place) == places:
            return relation
    return None
