"""What an image and a mask give a generation: latents, what its flow keeps, channels beside its latents."""

import torch
from torch import Tensor

import flow
from mmdit import MMDiTConfig

from ..adapters.inpainting import Beside
from ..errors import SettingsError
from ..fitting import latent_mask
from ..model import Model
from ..settings import Settings
from .inputs import Inputs

GREY = 0.0
"""What stands for the hole in the picture that a transformer for inpainting reads."""


def latents_of(model: Model, image: Tensor) -> Tensor:
    """The latents of an image, the mean; or what are latents already.

    Raises:
        SettingsError: latents of another model.
    """
    if image.shape[1] == 3:
        return model.encode_image(image)
    if image.shape[1] != model.mmdit.config.channels:
        raise SettingsError(
            f"latents of this model have {model.mmdit.config.channels} channels, got {tuple(image.shape)}"
        )
    return image.to(model.device)


def check_inpainting(config: MMDiTConfig, inputs: Inputs) -> None:
    """See that a transformer made for inpainting is given what it reads.

    Raises:
        SettingsError: it is one, and there is no image with a mask.
    """
    if config.inpaints and (inputs.mask is None or inputs.image is None or inputs.image.shape[1] != 3):
        raise SettingsError(
            "this transformer is made for inpainting: give an image and a mask of what to redraw"
        )


def beside(model: Model, inputs: Inputs) -> list[Beside]:
    """What a transformer made for inpainting reads: the mask, and latents of the picture with a grey hole.

    Raises:
        SettingsError: as `check_inpainting`.
    """
    check_inpainting(model.mmdit.config, inputs)
    image, mask = inputs.image, inputs.mask
    if not model.mmdit.config.inpaints or image is None or mask is None:
        return []
    hole = model.encode_image(torch.where(mask == 1, GREY, image))
    small = latent_mask(mask, "nearest").to(hole).expand(len(hole), -1, -1, -1)
    return [Beside(torch.cat([small, hole], dim=1))]


def keeping(
    velocity: flow.Velocity, model: Model, settings: Settings, inputs: Inputs, latents: Tensor, noise: Tensor
) -> flow.Velocity:
    """The velocity that keeps what the mask keeps; the same where nothing is kept.

    A transformer made for inpainting keeps it by itself, as in diffusers.

    Raises:
        SettingsError: no latent is redrawn.
    """
    if inputs.mask is None or model.mmdit.config.inpaints:
        return velocity
    mask = latent_mask(inputs.mask, settings.mask_rule)
    if not bool(mask.any()):
        raise SettingsError(
            "the mask is too thin: it falls between the pixels that tell which latents are redrawn; "
            "--mask-rule any takes all of it"
        )
    return flow.inpaint(velocity, latents.cpu(), noise, mask)
