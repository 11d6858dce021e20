"""Bringing pictures and masks to the size that is drawn, and a drawn part back into its picture."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vae.image import to_uint8

from .errors import SettingsError
from .units import LATENT, SIZE_UNIT


def nearest_size(image: Tensor) -> tuple[int, int]:
    """Width and height nearest to an image's own that can be drawn."""
    height, width = image.shape[-2:]
    return max(round(width / SIZE_UNIT), 1) * SIZE_UNIT, max(round(height / SIZE_UNIT), 1) * SIZE_UNIT


def fitted(image: Tensor, width: int, height: int, how: str, fill: float | None = None) -> Tensor:
    """Bring an image to a size.

    Resampled by Pillow's Lanczos filter: 8-bit pictures in 8 bits, to the last bit as both references; others
    in float32.

    Args:
        image: (B, C, H, W) in [-1, 1].
        width: of the result.
        height: of the result.
        how: "stretch" as both references do; "crop" covers the size and cuts equally on both sides; "pad"
            fits into it and repeats the edge, or fills with `fill`.
        fill: what padding is filled with.
    """
    if tuple(image.shape[-2:]) == (height, width):
        return image
    own_height, own_width = image.shape[-2:]
    if how == "stretch":
        return _resized(image, width, height)
    if how == "crop":
        scale = min(own_width / width, own_height / height)
        side, top = (own_width - scale * width) / 2, (own_height - scale * height) / 2
        return _resized(image, width, height, (side, top, own_width - side, own_height - top))
    scale = min(width / own_width, height / own_height)
    inner = max(round(own_width * scale), 1), max(round(own_height * scale), 1)
    image = _resized(image, *inner)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    sides = (left, width - inner[0] - left, top, height - inner[1] - top)
    return F.pad(image, sides, "replicate") if fill is None else F.pad(image, sides, value=fill)


def _resized(
    image: Tensor, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> Tensor:
    """Each channel resampled; in 8 bits where the values are those of 8 bits."""
    eight = ((image + 1) * 127.5).round().clamp(0, 255)
    in_eight = bool((2 * (eight / 255) - 1 == image).all())
    channels = []
    for channel in (eight if in_eight else image).flatten(0, 1):
        values = channel.to(torch.uint8).numpy() if in_eight else channel.float().numpy()
        picture = Image.fromarray(values).resize((width, height), Image.Resampling.LANCZOS, box)
        channels.append(torch.from_numpy(np.array(picture)).float())
    resized = torch.stack(channels).unflatten(0, image.shape[:2])
    return 2 * (resized / 255) - 1 if in_eight else resized.clamp(-1, 1)


def grey(image: Tensor) -> Tensor:
    """An image (B, 3, H, W) as grey (B, 1, H, W), by the luma of ITU-R BT.601; grey pictures as they are."""
    if bool((image[:, :1] == image).all()):
        return image[:, :1]
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    luma = (image * weights).sum(1, keepdim=True)
    return 2 * (to_uint8(luma.expand(-1, 3, -1, -1))[:, :1].float() / 255) - 1


def binary(mask: Tensor, white: str) -> Tensor:
    """A grey picture in [-1, 1] as a mask: 1 where something new is drawn. 128 of 255 counts as white."""
    light = (mask >= 0).float()
    return light if white == "redrawn" else 1 - light


def latent_mask(mask: Tensor, rule: str) -> Tensor:
    """A mask of pixels (B, 1, H, W) as one of latents (B, 1, H/8, W/8).

    Args:
        mask: 1 where something new is drawn.
        rule: "nearest" takes every eighth pixel, as diffusers; "any" the largest of the 64.
    """
    return F.max_pool2d(mask, LATENT) if rule == "any" else mask[..., ::LATENT, ::LATENT]


def seam(mask: Tensor, feather: int) -> Tensor:
    """How much of what was drawn is shown: 0 outside the mask, rising to 1 at `feather` pixels inside.

    Raises:
        SettingsError: the mask is so narrow that nothing would be shown in full.
    """
    half = (feather + 1) // 2
    inside = -F.max_pool2d(-mask, 2 * half + 1, stride=1, padding=half)
    shown = F.avg_pool2d(inside, 2 * half + 1, stride=1, padding=half, count_include_pad=False)
    if float(shown.amax(dim=(1, 2, 3)).min()) < 1:
        raise SettingsError(
            f"a seam of {feather} pixels on every side leaves nothing of the mask to be seen in full: choose "
            "a smaller feather, 0 for a hard edge"
        )
    return shown


def pasted(drawn: Tensor, picture: Tensor, mask: Tensor, feather: int) -> Tensor:
    """What was drawn, laid into the picture, whose pixels outside the mask stay as they are."""
    shown = seam(mask, feather)
    return torch.where(shown == 0, picture, shown * drawn + (1 - shown) * picture)
