"""Control pictures from photographs: edges by Canny's method, and blur."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vae.image import to_uint8

from ..errors import SettingsError

CANNY = (100, 200)
"""Canny's two thresholds, as the examples of both ControlNet's authors and diffusers have them."""
BLUR = 51
"""Pixels across the Gaussian; its deviation follows as 0.3 (BLUR / 2 - 1.5) + 0.8 = 8, OpenCV's rule."""


def edges(image: Tensor) -> Tensor:
    """The edges of pictures, white on black (J. Canny 1986).

    Args:
        image: (B, 3, H, W) in [-1, 1].

    Returns:
        (B, 3, H, W), -1 or 1.

    Raises:
        SettingsError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise SettingsError(
            "edges are drawn by OpenCV, which is not installed: pip install opencv-python-headless (the "
            "extra sd35[edges]), or give a picture of edges, with the control kind raw"
        ) from error
    drawn = [
        torch.from_numpy(cv2.Canny(picture.movedim(0, 2).contiguous().numpy(), *CANNY))
        for picture in to_uint8(image)
    ]
    return 2 * (torch.stack(drawn)[:, None].float() / 255).expand(-1, 3, -1, -1) - 1


def blurred(image: Tensor) -> Tensor:
    """Pictures under a Gaussian of `BLUR` pixels, (B, 3, H, W); the border is mirrored."""
    half = BLUR // 2
    deviation = 0.3 * ((BLUR - 1) / 2 - 1) + 0.8
    at = torch.arange(-half, half + 1, dtype=image.dtype)
    weights = torch.exp(-(at**2) / (2 * deviation**2))
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    for _ in range(2):
        padded = _mirrored(image, half)
        image = F.conv2d(padded, weights, groups=3).transpose(-1, -2)
    return image


def _mirrored(image: Tensor, by: int) -> Tensor:
    """The last axis continued on both sides by its mirror image, without repeating the border."""
    side = image.shape[-1]
    if side == 1:
        return image.expand(*image.shape[:-1], 1 + 2 * by)
    at = torch.arange(-by, side + by).abs() % (2 * side - 2)
    return image[..., torch.where(at < side, at, 2 * side - 2 - at)]
