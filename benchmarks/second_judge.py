"""A second judge of the embedded model's pictures, which measures by fitting templates.

It shares no code with the judge of the tests, which follows outlines, nor with what paints the training
pictures, and nothing was chosen or rewarded by it. Every kind of shape is drawn as a polygon with Pillow,
and the place, radius and colour that explain most of a picture are found by least squares:

    picture ≈ background + Σ colour · mask(kind, x, y, radius)

first by correlation over the whole picture, then more finely. A shape is believed where its template leaves
little unexplained around it, and clearly less than the template of any other kind would.

    from second_judge import faults
    faults(picture, parse("a red circle above a blue star"))  # an empty list where it is right
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sd35.tiny.captions import Claim
from sd35.tiny.scenes import Scene

Array = NDArray[np.float64]

FINE = 4  # masks are drawn this many times larger, and averaged
COARSE = 2  # the first search is on a picture so many times smaller
RADII = tuple(np.geomspace(0.05, 0.32, 16))  # tried in the search, in shares of the picture's side
SIZES = {"small": 0.12, "medium": 0.175, "large": 0.255}
SHAPES_AT_MOST = 3
REFINED = 3  # kinds, the best of the search, that are fitted more finely
STEPS = (0.012, 0.006, 0.003)  # of that, in shares of the picture's side
PRESENT = 41 / 128**2 * 60**2  # a shape explains more than 41 of 128 x 128 pixels, 60 levels off
WINDOW = 1.3  # half the side of the square in which a fit is judged, in radii
# The two that follow refuse the malformed shapes of the tests; drawn ones leave 0.03 and 0.10.
UNEXPLAINED = 0.10  # of a shape's own energy, at most
CLEARLY = 0.4  # what the kind leaves unexplained, as a share of what the next best would leave
NEAR = 70.0  # levels, Euclidean, from a colour that is named

COLOURS = {
    "red": (0xD7, 0x1E, 0x23),
    "orange": (0xF9, 0x87, 0x0D),
    "yellow": (0xF7, 0xE1, 0x28),
    "green": (0x1E, 0x96, 0x3C),
    "cyan": (0x28, 0xCD, 0xDC),
    "blue": (0x1E, 0x41, 0xD7),
    "purple": (0x82, 0x23, 0xAA),
    "pink": (0xF9, 0x87, 0xC1),
}
GROUNDS = COLOURS | {"white": (250, 250, 250), "black": (5, 5, 5), "grey": (128, 128, 128)}


@dataclass(frozen=True)
class Fit:
    """A template where it explains most; x and y from the picture's centre, in shares of its side."""

    kind: str
    x: float
    y: float
    radius: float
    gain: float = 0.0  # of the picture's energy, a mean over pixels


@dataclass(frozen=True)
class Seen:
    """A shape that was found."""

    kind: str  # or "unclear"
    colour: str
    x: float
    y: float
    radius: float


def faults(picture: NDArray[np.uint8], claim: Claim | Scene) -> list[str]:
    """In words, in what a picture (H, W, 3) departs from what is said of it."""
    return faults_of_seen(*see(picture), claim)


def faults_of_seen(ground: str, shapes: Sequence[Seen], claim: Claim | Scene) -> list[str]:
    """As `faults`, of what `see` gave."""
    wrong = []
    if claim.background not in (None, ground):
        wrong.append(f"background is {ground}, not {claim.background}")
    if len(shapes) != len(claim.shapes):
        return [*wrong, f"{len(shapes)} shapes, not {len(claim.shapes)}"]
    return wrong + min((_faults_of(order, claim) for order in permutations(shapes)), key=len)


def see(picture: NDArray[np.uint8]) -> tuple[str, list[Seen]]:
    """The background and the shapes of a picture (S, S, 3)."""
    pixels = picture.astype(np.float64)
    rim = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3)])
    ground = np.median(rim, axis=0)
    change = pixels - ground
    found: list[list[Fit]] = []  # of each shape the kinds' fits, the best first
    while len(found) <= SHAPES_AT_MOST:
        fits = _fits(_beyond(change, [one[0] for one in found]))
        if fits[0].gain < PRESENT:
            break
        found.append(fits)
    for number in range(len(found)) if len(found) > 1 else ():  # once more, now that the others are known
        others = [fits[0] for place, fits in enumerate(found) if place != number]
        rest = _without(change, others)
        found[number] = sorted((_refined(rest, fit) for fit in found[number]), key=lambda fit: -fit.gain)
    shapes = []
    for number, fits in enumerate(found):
        rest = _without(change, [other[0] for place, other in enumerate(found) if place != number])
        shapes.append(_named(rest, ground, fits))
    return _nearest(ground, GROUNDS), shapes


def mask(kind: str, x: float, y: float, radius: float, side: int) -> Array:
    """How much of each pixel a shape covers, (side, side) of 0 to 1."""
    fine = side * FINE
    canvas = Image.new("L", (fine, fine))
    pen = ImageDraw.Draw(canvas)
    middle, unit = ((x + 0.5) * fine - 0.5, (y + 0.5) * fine - 0.5), radius * fine

    def disc(share: float, value: int) -> None:
        left, top, right, bottom = (at + sign * share * unit for sign in (-1, 1) for at in middle)
        pen.ellipse((left, top, right, bottom), fill=value)

    if kind in CORNERS:
        pen.polygon([(middle[0] + unit * u, middle[1] + unit * v) for u, v in CORNERS[kind]], fill=255)
    else:
        disc(1.0, 255)
        if kind == "ring":
            disc(0.55, 0)
    return np.asarray(canvas.reduce(FINE), dtype=np.float64) / 255


def _around(turns: Sequence[float], radii: Sequence[float], down: float) -> list[tuple[float, float]]:
    """Corners at these turns from the top and these distances from a point `down` below the origin."""
    return [
        (radius * math.sin(2 * math.pi * turn), down - radius * math.cos(2 * math.pi * turn))
        for turn, radius in zip(turns, radii, strict=True)
    ]


CORNERS = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": _around([0, 1 / 3, 2 / 3], [1.2] * 3, 0.3),
    "star": _around([turn / 10 for turn in range(10)], [1.08, 0.46] * 5, 0.103),
    "cross": [
        (sign_u * u, sign_v * v)
        for sign_u, sign_v, corner in (
            (1, -1, [(0.32, 1.0), (0.32, 0.32), (1.0, 0.32)]),
            (1, 1, [(1.0, 0.32), (0.32, 0.32), (0.32, 1.0)]),
            (-1, 1, [(0.32, 1.0), (0.32, 0.32), (1.0, 0.32)]),
            (-1, -1, [(1.0, 0.32), (0.32, 0.32), (0.32, 1.0)]),
        )
        for u, v in corner
    ],
}
"""In units of the radius, y down, from the middle of the bounding box."""
KINDS = ("circle", "ring", *CORNERS)


def _gain(rest: Array, cover: Array) -> float:
    """How much of the picture's energy, a mean over its pixels, a mask in its best colour explains."""
    return float((np.tensordot(cover, rest, 2) ** 2).sum() / max((cover**2).sum(), 1e-9) / cover.size)


def _without(change: Array, fits: Sequence[Fit]) -> Array:
    """What is left of a change of the background when these shapes are taken out."""
    for fit in fits:
        cover = mask(fit.kind, fit.x, fit.y, fit.radius, len(change))
        colour = np.tensordot(cover, change, 2) / max((cover**2).sum(), 1e-9)
        change = change - cover[..., None] * colour
    return change


def _fits(rest: Array) -> list[Fit]:
    """Where each kind explains most of what is left; the better kinds finely, the best first."""
    side = len(rest) // COARSE
    small = rest.reshape(side, COARSE, side, COARSE, 3).mean((1, 3))
    spectrum = np.fft.rfft2(small, axes=(0, 1))
    coarse = []
    for kind in KINDS:
        best = Fit(kind, 0.0, 0.0, RADII[0], -1.0)
        for radius in RADII:
            template, size = _template(kind, radius, side)
            products = np.fft.irfft2(spectrum * template[..., None], (side, side), axes=(0, 1))
            gains = (products**2).sum(-1) / size / side**2
            row, column = np.unravel_index(gains.argmax(), gains.shape)
            if gains[row, column] > best.gain:
                x, y = (int(at) / side - 0.5 for at in (column, row))
                best = Fit(kind, x, y, radius, float(gains[row, column]))
        coarse.append(best)
    coarse.sort(key=lambda fit: -fit.gain)
    return sorted((_refined(rest, fit) for fit in coarse[:REFINED]), key=lambda fit: -fit.gain)


@cache
def _template(kind: str, radius: float, side: int) -> tuple[NDArray[np.complex128], float]:
    """For correlation: the conjugate spectrum of a mask around the first corner, and its energy."""
    cover = mask(kind, 0.0, 0.0, radius, side)
    return np.conj(np.fft.rfft2(np.roll(cover, (side // 2, side // 2), (0, 1)))), float((cover**2).sum())


def _refined(rest: Array, fit: Fit) -> Fit:
    """Move and scale a template while that explains more."""
    fit = replace(fit, gain=_gain(rest, mask(fit.kind, fit.x, fit.y, fit.radius, len(rest))))
    for step in STEPS:
        better = True
        while better:
            better = False
            for name in ("x", "y", "radius"):
                for sign in (1, -1):
                    tried = replace(fit, **{name: getattr(fit, name) + sign * step})
                    gain = _gain(rest, mask(tried.kind, tried.x, tried.y, tried.radius, len(rest)))
                    if gain > fit.gain and 0.03 < tried.radius < 0.4:
                        fit, better = replace(tried, gain=gain), True
    return fit


def _window(fit: Fit, side: int) -> tuple[slice, slice]:
    """Rows and columns around a shape; what is left of the picture there is held against that shape."""
    half = WINDOW * fit.radius
    top, left = (max(0, int((at + 0.5 - half) * side)) for at in (fit.y, fit.x))
    bottom, right = (math.ceil((at + 0.5 + half) * side) for at in (fit.y, fit.x))
    return slice(top, bottom), slice(left, right)


def _beyond(change: Array, fits: Sequence[Fit]) -> Array:
    """A change of the background with nothing in the windows of these shapes."""
    change = change.copy()
    for fit in fits:
        change[_window(fit, len(change))] = 0
    return change


def _unexplained(rest: Array, fit: Fit, best: Fit) -> float:
    """The share of the energy in the window of the best fit that a fit leaves."""
    window = _window(best, len(rest))
    left = _without(rest, [fit])[window]
    return float((left**2).sum() / max((rest[window] ** 2).sum(), 1e-9))


def _named(rest: Array, ground: Array, fits: Sequence[Fit]) -> Seen:
    """The best fit in words, where it can be believed."""
    best = fits[0]
    cover = mask(best.kind, best.x, best.y, best.radius, len(rest))
    inside = cover > 0.99
    colour = np.median(rest[inside if inside.any() else cover > 0.5], axis=0) + ground
    left, *others = (_unexplained(rest, fit, best) for fit in fits)
    is_clear = left < UNEXPLAINED and left < CLEARLY * min(others)
    return Seen(best.kind if is_clear else "unclear", _nearest(colour, COLOURS), best.x, best.y, best.radius)


def _nearest(colour: Array, named: dict[str, tuple[int, int, int]]) -> str:
    far = {name: math.dist(colour, value) for name, value in named.items()}
    name = min(far, key=far.__getitem__)
    return name if far[name] < NEAR else "unclear"


def _size(radius: float) -> str:
    """The nearest size by ratio, or "unclear" beyond a fifth above or below it."""
    name = min(SIZES, key=lambda size: abs(math.log(radius / SIZES[size])))
    return name if abs(math.log(radius / SIZES[name])) < math.log(1.2) else "unclear"


def _place(x: float, y: float) -> str:
    """Which of five places it is at, if within a tenth of the side of one."""
    places = {"centre": (0, 0), "left": (-0.2, 0), "right": (0.2, 0), "top": (0, -0.2), "bottom": (0, 0.2)}
    far = {name: math.dist((x, y), at) for name, at in places.items()}
    name = min(far, key=far.__getitem__)
    return name if far[name] < 0.1 else "unclear"


def _relation(first: Seen, second: Seen) -> str:
    """How the first lies to the second: along one axis, by twice as much as along the other."""
    across, down = second.x - first.x, second.y - first.y
    if max(abs(across), abs(down)) < 2 * min(abs(across), abs(down)):
        return "unclear"
    if abs(across) > abs(down):
        return "left of" if across > 0 else "right of"
    return "above" if down > 0 else "below"


def _faults_of(order: Sequence[Seen], claim: Claim | Scene) -> list[str]:
    """What is wrong if the shapes seen are those of the claim in this order."""
    wrong = []
    for seen, said in zip(order, claim.shapes, strict=True):
        is_ = {
            "kind": seen.kind,
            "colour": seen.colour,
            "size": _size(seen.radius),
            "place": _place(seen.x, seen.y),
        }
        for name, value in is_.items():
            if getattr(said, name) not in (None, value):
                wrong.append(f"{seen.colour} {seen.kind}: {name} is {value}, not {getattr(said, name)}")
    if claim.relation is not None and _relation(*order) != claim.relation:
        wrong.append(f"one shape is {_relation(*order)} the other, not {claim.relation}")
    return wrong
