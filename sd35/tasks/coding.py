"""The latents of pictures that are inverted, and what the autoencoder and eight bits lose."""

from torch import Tensor
from tqdm import tqdm

from flow import Closeness, closeness
from vae.image import to_uint8
from vae.refine import refine, refine_by_encoder

from ..methods import Inverting
from ..model import Model
from .source import Source

IMAGE_RANGE = 2.0
"""Of an image, from -1 to 1."""


def latents_of(
    model: Model, source: Source, how: Inverting, *, progress: bool
) -> tuple[Tensor, dict[str, Closeness]]:
    """The latents of a source; and what the coding of its pictures loses, where that is to be measured."""
    if source.image is None:
        return source.data.detach().float().to(model.device), {}
    image = source.image.detach().float().to(model.device)
    latents = first = model.encode_image(image)
    if how.refine_steps:
        search = refine if how.refine_by == "gradient" else refine_by_encoder
        steps = search(model.vae, image, latents, steps=how.refine_steps)
        for step in tqdm(steps, desc="refining", total=how.refine_steps, unit="step", disable=not progress):
            latents = step.latents.detach()
    if not how.measure:
        return latents, {}
    decoded = model.decode(first).clamp(-1, 1)
    losses = {"encoder": closeness(decoded, image, IMAGE_RANGE)}
    if how.refine_steps:
        decoded = model.decode(latents).clamp(-1, 1)
        losses["refined"] = closeness(decoded, image, IMAGE_RANGE)
    rounded = to_uint8(decoded).float() / 127.5 - 1
    losses["rounding"] = closeness(rounded, decoded.detach(), IMAGE_RANGE)
    return latents, losses
