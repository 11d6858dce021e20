"""How large a picture a model draws."""

import re
from typing import NamedTuple

from mmdit import MMDiTConfig
from vae import VAEConfig
from weights.component import Component

from .errors import SettingsError

RELEASED = 1024
"""Side of the pictures that SD3 and SD3.5 were trained to draw, in pixels."""


class Size(NamedTuple):
    """Of a picture, in pixels."""

    width: int
    height: int


def native_size(transformer: Component) -> Size:
    """The size that a model was trained at.

    It is read off the file's `modelspec.resolution` ("128x128"; the Stability AI metadata standard), or else
    off the `sample_size` of a diffusers config, which counts latents; else it is that of the released models.
    """
    for file in transformer.files:
        metadata = transformer.unit.folder.header(file).metadata
        if match := re.fullmatch(r"(\d+)x(\d+)", metadata.get("modelspec.resolution", "")):
            return Size(int(match[1]), int(match[2]))
    side = transformer.config.get("sample_size")
    if isinstance(side, int):
        return Size(8 * side, 8 * side)
    config = MMDiTConfig.from_shapes(transformer.shapes())
    side = min(RELEASED, 8 * config.patch_size * config.pos_embed_size)
    return Size(side, side)


def check_size(width: int, height: int, mmdit: MMDiTConfig, vae: VAEConfig) -> None:
    """See that a model's position table covers a size.

    Raises:
        SettingsError: a side is longer than the table.
    """
    longest = mmdit.patch_size * vae.factor * mmdit.pos_embed_size
    for name, side in (("width", width), ("height", height)):
        if side > longest:
            raise SettingsError(f"{name} must be at most {longest}, where its positions end; got {side}")
