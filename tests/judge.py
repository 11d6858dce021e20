"""Reads a picture of the embedded model back: an independent witness of what was drawn.

Nothing here comes from the code that draws. A picture is segmented by its distance from the
background's colour, parts of one piece that differ in colour are separated, and each part's kind is
told from its outline: how many times the radius swells in one turn around the centroid (three times
for a triangle, four for a square or a cross, five for a star), whether there is a hole, and how much
of the bounding box is filled. What fits no description is read as "unclear" and agrees with nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SHAPE_COLOURS = {
    "red": (214, 32, 36),
    "orange": (254, 136, 12),
    "yellow": (250, 224, 40),
    "green": (32, 150, 60),
    "cyan": (40, 204, 220),
    "blue": (30, 66, 214),
    "purple": (130, 36, 170),
    "pink": (254, 140, 196),
}
BACKGROUND_COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128), **SHAPE_COLOURS}

UNCLEAR = "unclear"
COLOUR_TOLERANCE = 60  # Euclidean in sRGB of 0 to 255; no two of the colours are nearer than 90
FOREGROUND = 45  # this far from the background a pixel belongs to something
SPECK = 12 / 128**2  # a part of fewer pixels, as a share of the picture, is dirt
ANGLES = 96  # rays of an outline


@dataclass(frozen=True)
class Found:
    """A shape read from a picture; `x` and `y` run from the centre, in units of the picture's side."""

    kind: str
    colour: str
    size: str
    place: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Reading:
    """All that was found in a picture, the largest shape first."""

    background: str
    shapes: tuple[Found, ...]


class ShapeClaim(Protocol):
    """What is asserted of a shape; None asserts nothing."""

    @property
    def kind(self) -> str | None: ...
    @property
    def colour(self) -> str | None: ...
    @property
    def size(self) -> str | None: ...
    @property
    def place(self) -> str | None: ...


class Claim(Protocol):
    """What is asserted of a picture: these shapes and no others; `relation` is the first's to the second."""

    @property
    def shapes(self) -> Sequence[ShapeClaim]: ...
    @property
    def background(self) -> str | None: ...
    @property
    def relation(self) -> str | None: ...


class Outline(NamedTuple):
    """What the kind of a shape is told from."""

    fill: float  # share of the bounding box that is filled, holes included
    hole: float  # share of that which is hole
    swell: tuple[float, ...]  # how strongly the radius swells 0, 1, 2 ... 8 times a turn; its mean is 1
    up: float  # for the strongest of three to five: 1 when a swelling points up, -1 when a notch does


@dataclass(frozen=True)
class Pointed:
    """What the outline of a kind with corners looks like; the middles of the ranges were worked out."""

    fold: int  # swellings in a turn
    swell: tuple[float, float]
    up: int  # 1: one of them points up; -1: between two is up
    fill: tuple[float, float]

    def fits(self, fold: int, swell: float, up: float, fill: float) -> bool:
        """Whether what was measured lies within."""
        return (
            fold == self.fold
            and self.swell[0] < swell < self.swell[1]
            and self.up * up > 0.8
            and self.fill[0] < fill < self.fill[1]
        )


POINTED = {
    "square": Pointed(fold=4, swell=(0.10, 0.19), up=-1, fill=(0.88, 1.01)),
    "triangle": Pointed(fold=3, swell=(0.20, 0.35), up=1, fill=(0.42, 0.60)),
    "star": Pointed(fold=5, swell=(0.20, 0.46), up=1, fill=(0.30, 0.50)),
    "cross": Pointed(fold=4, swell=(0.25, 0.50), up=1, fill=(0.42, 0.66)),
}


def read(image: NDArray[np.uint8]) -> Reading:
    """What is to be seen in `image`, (H, W, 3), sRGB of 0 to 255."""
    pixels = image.astype(np.float64)
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(frame, axis=0)
    parts = [
        part
        for piece in components(np.linalg.norm(pixels - ground, axis=-1) > FOREGROUND)
        if piece.sum() > SPECK * piece.size
        for part in _by_colour(pixels, piece)
    ]
    found = (_describe(pixels, part, ground) for part in parts)
    return Reading(
        background=_nearest(ground, BACKGROUND_COLOURS),
        shapes=tuple(sorted(found, key=lambda shape: -shape.radius)),
    )


def agrees(reading: Reading, claim: Claim) -> bool:
    """Whether a picture shows what is claimed, and no shape besides."""
    return not disagreements(reading, claim)


def disagreements(reading: Reading, claim: Claim) -> list[str]:
    """In words, each point in which a picture departs from what is claimed of it."""
    wrong = []
    if claim.background not in (None, reading.background):
        wrong.append(f"background is {reading.background}, not {claim.background}")
    if len(reading.shapes) != len(claim.shapes):
        kinds = ", ".join(f"{shape.colour} {shape.kind}" for shape in reading.shapes) or "none"
        return [*wrong, f"{len(reading.shapes)} shapes ({kinds}), not {len(claim.shapes)}"]
    # The claim does not say which of the shapes found is its first: the best of both ways counts.
    ways = (_shape_disagreements(order, claim) for order in permutations(reading.shapes))
    return wrong + min(ways, key=len)


def components(mask: Mask) -> list[Mask]:
    """The connected parts of a mask (by edges, not corners), each as a mask of the same shape.

    Runs of set pixels are found row by row, and a run joins those that it touches in the row above.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    rows, starts = np.nonzero(np.diff(padded, axis=1) == 1)
    _, ends = np.nonzero(np.diff(padded, axis=1) == -1)
    root = list(range(len(rows)))

    def find(run: int) -> int:
        while root[run] != run:
            root[run] = run = root[root[run]]
        return run

    bounds = np.searchsorted(rows, np.arange(height + 1)).tolist()
    first, last = starts.tolist(), ends.tolist()
    for row in range(1, height):
        for run in range(bounds[row], bounds[row + 1]):
            for above in range(bounds[row - 1], bounds[row]):
                if first[run] < last[above] and first[above] < last[run]:
                    root[find(run)] = find(above)
    parts: dict[int, Mask] = {}
    for run, row in enumerate(rows.tolist()):
        part = parts.setdefault(find(run), np.zeros_like(mask))
        part[row, first[run] : last[run]] = True
    return list(parts.values())


def outline(mask: Mask) -> Outline:
    """Measure the shape in `mask`, which is cut to its bounding box."""
    holes = ~mask & ~_outside(mask)
    solid = mask | holes
    rows, columns = np.nonzero(solid)
    centre_y, centre_x = rows.mean(), columns.mean()
    angles = np.arange(ANGLES) * (2 * np.pi / ANGLES)  # 0 is up, and then clockwise
    steps = np.arange(0.25, np.hypot(*mask.shape), 0.5)
    y = np.rint(centre_y - np.outer(np.cos(angles), steps)).astype(int)
    x = np.rint(centre_x + np.outer(np.sin(angles), steps)).astype(int)
    within = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
    radius = (solid[np.where(within, y, 0), np.where(within, x, 0)] & within).sum(axis=1)
    waves = np.fft.rfft(radius / max(radius.mean(), 1e-9))[:9] * (2 / ANGLES)
    swell = np.abs(waves)
    strongest = 3 + int(swell[3:6].argmax())
    return Outline(
        fill=float(solid.mean()),
        hole=float(holes.sum() / solid.sum()),
        swell=tuple(swell.tolist()),
        up=float(np.cos(np.angle(waves[strongest]))),
    )


def kind_of(shape: Outline) -> str:
    """The kind that an outline belongs to, or "unclear"."""
    if max(shape.swell[1:6]) < 0.06 and 0.7 < shape.fill < 0.87:
        return "circle" if shape.hole < 0.03 else "ring" if 0.15 < shape.hole < 0.5 else UNCLEAR
    fold = 3 + int(np.argmax(shape.swell[3:6]))
    others = max(swell for turns, swell in enumerate(shape.swell[1:6], start=1) if turns != fold)
    if others > 0.12 or shape.hole > 0.03:
        return UNCLEAR
    for kind, look in POINTED.items():
        if look.fits(fold, shape.swell[fold], shape.up, shape.fill):
            return kind
    return UNCLEAR


def _outside(mask: Mask) -> Mask:
    """What can be reached from beyond the edges of `mask` without crossing it."""
    around = np.pad(~mask, 1, constant_values=True)
    return next(part for part in components(around) if part[0, 0])[1:-1, 1:-1]


def _by_colour(pixels: Array, piece: Mask) -> list[Mask]:
    """Separate what touches but differs in colour.

    At the edges colours mix into others (red on blue gives a rim of purple), so that a colour only
    counts where it covers whole 3 by 3 squares, and a good share of the piece.
    """
    names = np.argmin(_distances(pixels[piece], SHAPE_COLOURS), axis=1)
    named = np.full(piece.shape, -1)
    named[piece] = names
    cores = {name: _eroded(named == name) for name in np.unique(names)}
    total = sum(int(core.sum()) for core in cores.values())
    present = [name for name, core in cores.items() if core.sum() > max(0.1 * total, SPECK * piece.size)]
    if len(present) < 2:
        return [piece]
    owner = np.array(present)[np.argmin(_distances(pixels[piece], SHAPE_COLOURS)[:, present], axis=1)]
    named[piece] = owner
    return [
        part
        for name in present
        for part in components(named == name)
        if (part & cores[name]).any()  # else a rim of mixed colour
    ]


def _describe(pixels: Array, part: Mask, ground: Array) -> Found:
    """Name one part of a picture."""
    core = _eroded(part)
    colour = np.median(pixels[core if core.any() else part], axis=0)
    # Cut the edge where the picture is halfway from the background to the shape.
    span = colour - ground
    cover = (pixels - ground) @ span / max(float(span @ span), 1.0)
    sharp = part & (cover > 0.5)
    rows, columns = np.nonzero(sharp if sharp.any() else part)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    height, width = part.shape
    x, y = (left + right) / 2 / width - 0.5, (top + bottom) / 2 / height - 0.5
    radius = ((right - left) / width + (bottom - top) / height) / 4
    tall = (bottom - top) / (right - left)
    return Found(
        kind=kind_of(outline(sharp[top:bottom, left:right])) if 0.75 < tall < 1.25 else UNCLEAR,
        colour=_nearest(colour, SHAPE_COLOURS),
        size=_size(radius),
        place=_place(x, y),
        x=x,
        y=y,
        radius=radius,
    )


def _size(radius: float) -> str:
    """A size by its radius, half the mean side of the bounding box."""
    if not 0.08 < radius < 0.31:
        return UNCLEAR
    return "small" if radius < 0.137 else "medium" if radius < 0.198 else "large"


def _place(x: float, y: float) -> str:
    """A place by the middle of the bounding box, or "unclear" in a corner."""
    if max(abs(x), abs(y)) < 0.1:
        return "centre"
    if min(abs(x), abs(y)) > 0.1:
        return UNCLEAR
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "top" if y < 0 else "bottom"


def _shape_disagreements(order: Sequence[Found], claim: Claim) -> list[str]:
    """What is wrong if the shapes found are the claimed ones in this order."""
    wrong = []
    for found, claimed in zip(order, claim.shapes, strict=True):
        for attribute in ("kind", "colour", "size", "place"):
            is_, asked = getattr(found, attribute), getattr(claimed, attribute)
            if asked not in (None, is_):
                wrong.append(f"{found.colour} {found.kind}: {attribute} is {is_}, not {asked}")
    if claim.relation is not None:
        relation = _relation(*order)
        if relation != claim.relation:
            wrong.append(f"{order[0].colour} {order[0].kind} is {relation} the other, not {claim.relation}")
    return wrong


def _relation(first: Found, second: Found) -> str:
    across, down = second.x - first.x, second.y - first.y
    if max(abs(across), abs(down)) < 0.15 or 0.6 < abs(across) / max(abs(down), 1e-9) < 1.7:
        return UNCLEAR
    if abs(across) > abs(down):
        return "left of" if across > 0 else "right of"
    return "above" if down > 0 else "below"


def _nearest(colour: Array, named: dict[str, tuple[int, int, int]]) -> str:
    distances = _distances(colour[None], named)[0]
    return list(named)[int(distances.argmin())] if distances.min() < COLOUR_TOLERANCE else UNCLEAR


def _distances(pixels: Array, named: dict[str, tuple[int, int, int]]) -> Array:
    """From each of (n, 3) to each named colour, (n, number of names)."""
    return np.linalg.norm(pixels[:, None] - np.array(list(named.values()), dtype=np.float64), axis=-1)


def _eroded(mask: Mask) -> Mask:
    """Where the 3 by 3 squares around are set wholly."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] & padded[1:-1] & padded[2:]
    return rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
