"""Pictures of shapes that are none of the six kinds, though near to one: a judge must refuse them."""

import numpy as np
import torch

from sd35.tiny.painting import draw
from sd35.tiny.scenes import COLOURS, Scene, Shape

RED, SIDE = COLOURS["red"], 128


def ellipse(height: float, width: float) -> np.ndarray:
    """On white, of these half sides."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    image = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    image[(y / height) ** 2 + (x / width) ** 2 < 1] = RED
    return image


def broken_ring() -> np.ndarray:
    """Open on the right."""
    image = ellipse(30, 30)
    image[ellipse(16, 16)[..., 1] < 255] = 255
    image[56:72, 60:] = 255
    return image


def square_with_a_hole() -> np.ndarray:
    """A square hole."""
    image = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    image[40:88, 40:88] = RED
    image[56:72, 56:72] = 255
    return image


def upside_down(kind: str) -> np.ndarray:
    """A large one."""
    scene = Scene((Shape(kind, "red", "large", "centre"),), "white")
    (image,) = draw([scene], torch.Generator().manual_seed(0))
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()[::-1]


def pictures() -> dict[str, np.ndarray]:
    """All of them, (128, 128, 3), by name."""
    return {
        "ellipse": ellipse(20, 30),
        "almost a circle": ellipse(26, 30),
        "broken ring": broken_ring(),
        "square with a hole": square_with_a_hole(),
        "fallen triangle": upside_down("triangle"),
        "fallen star": upside_down("star"),
    }
