"""The outlines of the six kinds of shape, as signed distances.

Each function takes offsets from the middle of the shape's bounding box in units of its radius, u
(P, 1, S) to the right and v (P, S, 1) down, and gives the distance to the edge (P, S, S), negative
inside. Beyond a corner the distance is too short, which no pixel of an edge can tell.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def circle(u: Tensor, v: Tensor) -> Tensor:
    """A disc of radius 1."""
    return torch.sqrt(u * u + v * v) - 1


def square(u: Tensor, v: Tensor) -> Tensor:
    """An upright square of half side 0.88."""
    return torch.maximum(u.abs(), v.abs()) - 0.88


def triangle(u: Tensor, v: Tensor) -> Tensor:
    """Equilateral, upright, of circumradius 1.2: the largest of three signed distances to a side."""
    v = v - 0.3  # from the middle of the box to the centroid
    slanted = u.abs() * math.cos(math.pi / 6) - v * math.sin(math.pi / 6)
    return torch.maximum(slanted, v) - 0.6


def star(u: Tensor, v: Tensor, outer: float = 1.08, inner: float = 0.46) -> Tensor:
    """Five points, one of them up: folded into a tenth of the turn, it is one straight edge."""
    v = v - (1 - math.cos(math.pi / 5)) / 2 * outer  # from the middle of the box to the centre
    angle = torch.atan2(u.abs(), -v)  # 0 at the upper point
    folded = (torch.remainder(angle + math.pi / 5, 2 * math.pi / 5) - math.pi / 5).abs()
    length = torch.sqrt(u * u + v * v)
    along, across = length * torch.cos(folded), length * torch.sin(folded)
    # The edge runs from the point (outer, 0) to the notch at an angle of 36°.
    notch_along, notch_across = inner * math.cos(math.pi / 5), inner * math.sin(math.pi / 5)
    normal = (notch_across, outer - notch_along)
    return ((along - outer) * normal[0] + across * normal[1]) / math.hypot(*normal)


def cross(u: Tensor, v: Tensor, arm: float = 0.32) -> Tensor:
    """Two bars of half width `arm` that meet in the middle, as in a plus sign."""
    u, v = u.abs(), v.abs()
    upright = torch.maximum(u - arm, v - 1)
    lying = torch.maximum(u - 1, v - arm)
    return torch.minimum(upright, lying)


def ring(u: Tensor, v: Tensor, hole: float = 0.55) -> Tensor:
    """A disc of radius 1 with a hole of radius `hole`."""
    return (torch.sqrt(u * u + v * v) - (1 + hole) / 2).abs() - (1 - hole) / 2


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "ring": ring,
}
"""The kinds of shape, each with its signed distance."""
