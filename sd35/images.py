"""A picture in any form that people have it, as an image (B, 3, H, W) in [-1, 1]."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vae.image import read, to_tensor

from .errors import SettingsError

One: TypeAlias = Image.Image | np.ndarray | str | Path
Picture: TypeAlias = Tensor | One | Sequence[One]

BEYOND = 3.0
"""The largest magnitude that is taken for an image: decoded pictures overshoot 1, but not by so much."""
OVERSHOOT = 0.1
"""How far below 0 the black of a picture in [0, 1] may lie, after resampling or a decoder; a picture in
[-1, 1] with no value below this has no pixel darker than 45 % grey in any channel."""


def as_image(picture: Picture) -> Tensor:
    """The image of a picture, or of several of one size.

    Args:
        picture: floats (B, 3, H, W) in [-1, 1]; a Pillow picture, an array (H, W[, C]) of uint8 or uint16, or
            the path of a picture; or a list of these.

    Returns:
        (B, 3, H, W), floating.

    Raises:
        OSError: there is no such file.
        SettingsError: another type or shape, or a tensor whose values are not those of an image.
        ValueError: what `vae.image` says of a picture.
    """
    if isinstance(picture, Tensor):
        check_image(picture)
        return picture
    if isinstance(picture, str | Path):
        return read(picture)
    if isinstance(picture, Image.Image | np.ndarray):
        return to_tensor(picture)
    if isinstance(picture, Sequence) and picture and all(isinstance(one, get_args(One)) for one in picture):
        images = [as_image(one) for one in picture]
        sizes = sorted({(image.shape[3], image.shape[2]) for image in images})
        if len(sizes) > 1:
            raise SettingsError(f"pictures that are worked on together must have one size, got {sizes}")
        return torch.cat(images)
    raise SettingsError(
        "expected a picture: a tensor (B, 3, H, W) in [-1, 1], a Pillow picture, an array, a path, "
        f"or a list of these; got {type(picture).__name__}"
    )


def check_image(image: Tensor) -> None:
    """See that a tensor is an image, as far as its values tell.

    Raises:
        SettingsError: its shape, its dtype, or a range of values that is not [-1, 1].
    """
    if image.ndim != 4 or image.shape[1] != 3 or not image.numel():
        raise SettingsError(f"an image must be (B, 3, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise SettingsError(
            f"an image must be floats in [-1, 1], got {image.dtype}: pass a Pillow picture or an array of "
            "uint8, or image.float() / 127.5 - 1"
        )
    low, high = float(image.min()), float(image.max())
    if not -BEYOND <= low <= high <= BEYOND:
        raise SettingsError(
            f"an image must be in [-1, 1], got values of {low:.3g} to {high:.3g}: "
            "if white is 255, pass image / 127.5 - 1"
        )
    if (low >= 0 and high > 0) or (low >= -OVERSHOOT and high > OVERSHOOT):
        raise SettingsError(
            f"an image must be in [-1, 1], where black is -1; this one has values of {low:.3g} to {high:.3g} "
            "only. If white is 1 and black 0, pass 2 * image - 1; if it is as bright as that, pass it as a "
            "Pillow picture"
        )
