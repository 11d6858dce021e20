"""Pictures that a model draws while it is trained, from encodings that are in the cache."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import flow
from mmdit import MMDiT
from vae import VAE
from vae.image import to_pil

from ..errors import check_finite
from ..noise import draw_noise, generators
from ..saved.write import written
from .encode import EMPTY

Encode = Callable[[str], tuple[Tensor, Tensor]]
"""encode(text) -> context (1, M, 4096), pooled (1, 2048), on the transformer's device."""

STEPS, GUIDANCE = 28, 4.5


@torch.no_grad()
def draw_pictures(
    mmdit: MMDiT,
    vae: VAE,
    encode: Encode,
    prompts: Sequence[str],
    size: tuple[int, int],
    seeds: Sequence[int],
    *,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE,
    schedule_shift: float = 3.0,
) -> Tensor:
    """Draw one picture for each prompt, by Euler's method with guidance.

    Args:
        mmdit: the transformer.
        vae: the autoencoder.
        encode: what the transformer reads of a text.
        prompts: B of them.
        size: width and height.
        seeds: of each picture's noise.
        steps: of the solver.
        guidance_scale: 1 is no guidance.
        schedule_shift: of the noise levels.

    Returns:
        Images, (B, 3, height, width), nominally in [-1, 1], float32 on the CPU.

    Raises:
        NonFiniteError: a picture is not a number.
    """
    device, factor = mmdit.pos_embed.device, vae.config.factor
    shape = (mmdit.config.channels, size[1] // factor, size[0] // factor)
    empty = encode(EMPTY)
    images = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        cond = encode(prompt)
        velocity = flow.guided(
            lambda x, sigma, cond=cond: mmdit(x, sigma, *cond),
            lambda x, sigma: mmdit(x, sigma, *empty),
            guidance_scale,
        )
        noise = draw_noise(generators([seed]), shape).to(device)
        latents = flow.solve(velocity, noise, flow.sigmas(steps, schedule_shift=schedule_shift))
        images.append(
            check_finite(vae.decode(latents.float()), "autoencoder (decoding)", latents.dtype).cpu()
        )
    return torch.cat(images)


def save_samples(images: Tensor, folder: Path, step: int) -> None:
    """Write pictures as STEP-NUMBER.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        with written(folder / f"{step:06}-{number}.png", overwrite=True) as temporary:
            to_pil(image).save(temporary, "PNG")
