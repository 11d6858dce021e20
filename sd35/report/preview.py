"""A picture of latents without the autoencoder: one linear map from 16 channels to three colours.

    colour = W · latents + b        W and b by least squares

It costs nothing, and shows how much of a picture is in the latents already: the rest is the decoder's work.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

RIDGE = 1e-4  # keeps the map small where a small picture leaves it undetermined


class LinearPreview(NamedTuple):
    """The map, and how well it fits."""

    weight: Tensor  # (17, 3), the last row is b
    explained: float  # share of the colours' variance, 1 where nothing is left unexplained

    def __call__(self, latents: Tensor) -> Image.Image:
        """The picture of latents (16, h, w), w x h pixels."""
        colours = _rows(latents[None].double()) @ self.weight
        pixels = (colours.clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(pixels.reshape(*latents.shape[1:], 3).numpy())


def fit_preview(latents: Tensor, pictures: Sequence[Image.Image]) -> LinearPreview:
    """Find the map that brings latents closest to their decoded pictures.

    Args:
        latents: (S, 16, h, w).
        pictures: S of them, of any size.
    """
    x = _rows(latents.double())
    size = latents.shape[2:]
    y = torch.cat([_rows_of(picture, (size[0], size[1])) for picture in pictures])
    gram = x.T @ x
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + ridge, x.T @ y)
    left = (y - x @ weight).square().sum()
    spread = (y - y.mean(dim=0)).square().sum()
    return LinearPreview(weight, float(1 - left / spread) if spread > 0 else 1.0)


def _rows(latents: Tensor) -> Tensor:
    """(S, 16, h, w) to (S · h · w, 17), the last being 1."""
    rows = latents.movedim(1, -1).flatten(0, 2)
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)


def _rows_of(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture at the latents' size, (h · w, 3) in [0, 1]."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).double() / 255
    return F.adaptive_avg_pool2d(pixels.movedim(-1, 0), size).flatten(1).T
