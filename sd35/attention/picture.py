"""Heat maps as pictures."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Dark to bright, with a lightness that rises evenly, so that the map reads in grey as well.
COLOURS = (
    (0, 0, 4),
    (31, 12, 72),
    (85, 15, 109),
    (136, 34, 106),
    (186, 54, 85),
    (227, 89, 51),
    (249, 140, 10),
    (249, 201, 50),
    (252, 255, 164),
)


def heat_picture(heat: Tensor, size: tuple[int, int], *, top: float | None = None) -> Image.Image:
    """A heat map in colours, from dark for none to bright for the most.

    Args:
        heat: (rows, columns), not negative.
        size: width and height of the picture.
        top: the value of the brightest colour; None is the map's largest. Give one to compare maps.
    """
    return Image.fromarray((255 * _coloured(_scaled(heat, size, top))).round().astype(np.uint8))


HIDDEN = 0.75
"""How much of a picture the hottest place of an overlay hides, 0 to 1."""


def overlay(picture: Image.Image, heat: Tensor) -> Image.Image:
    """A heat map over its picture: the hotter, the more of the map's colour; the rest fades to grey.

    Args:
        picture: of any size.
        heat: (rows, columns), not negative; the hottest place has the brightest colour.
    """
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32) / 255
    picture_share = 0.35 * np.asarray(picture.convert("RGB"), dtype=np.float32) / 255 + 0.65 * grey
    level = _scaled(heat, picture.size, None)
    weight = HIDDEN * level[..., None] ** 0.75
    mixed = (1 - weight) * picture_share + weight * _coloured(level)
    return Image.fromarray((255 * mixed).round().clip(0, 255).astype(np.uint8))


def _scaled(heat: Tensor, size: tuple[int, int], top: float | None) -> np.ndarray:
    """The map at a picture's size, (height, width) in [0, 1]."""
    if heat.ndim != 2:
        raise ValueError(f"a heat map is (rows, columns), got {tuple(heat.shape)}")
    values = heat.detach().float().cpu()
    limit = float(values.max()) if top is None else top
    level = values / limit if limit > 0 else torch.zeros_like(values)
    enlarged = Image.fromarray(level.numpy()).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(enlarged).clip(0, 1)


def _coloured(level: np.ndarray) -> np.ndarray:
    """(height, width) in [0, 1] to colours (height, width, 3) in [0, 1]."""
    stops = np.linspace(0, 1, len(COLOURS))
    table = np.asarray(COLOURS) / 255
    return np.stack([np.interp(level, stops, table[:, channel]) for channel in range(3)], axis=-1)
