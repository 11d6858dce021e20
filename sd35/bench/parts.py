"""The models that are measured: a user's own, or ones of a released model's sizes with random weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from mmdit import MMDiT, MMDiTConfig
from textenc import CLIP, T5, CLIPConfig, T5Config
from vae import VAE, VAEConfig

from ..errors import SettingsError
from ..found import find
from ..loading import load_found
from ..size import check_size

Module = TypeVar("Module", bound=nn.Module)

VARIANTS = {
    "medium": MMDiTConfig(dim=1536, depth=24, num_heads=24, pos_embed_size=384, dual_blocks=tuple(range(13))),
    "large": MMDiTConfig(dim=2432, depth=38, num_heads=38, pos_embed_size=192),
}
"""SD3.5's transformers; the other parts are the same in both."""
AUTOENCODER = VAEConfig((128, 256, 512, 512), 2, 16)
CLIP_L = CLIPConfig(49408, 77, 768, 12, 12, 3072, None, "quick_gelu")
CLIP_G = CLIPConfig(49408, 77, 1280, 32, 20, 5120, 1280, "gelu")
T5_XXL = T5Config(32128, 4096, 24, 64, 64, 10240, 32)


@dataclass(frozen=True)
class Parts:
    """Each part, made when its turn comes, so that those that are random need not be held together."""

    name: str
    device: torch.device
    dtype: torch.dtype
    pixels: tuple[int, ...]  # sides of the pictures that the transformer is measured at, rising
    mmdit: Callable[[], MMDiT]
    vae: Callable[[], VAE]
    encoders: dict[str, Callable[[], CLIP | T5]]
    source: str | None = None
    """Where the weights are; None where they are random."""


def of_variant(
    variant: str, device: torch.device, dtype: torch.dtype, pixels: tuple[int, ...], blocks: int | None = None
) -> Parts:
    """Random weights of a released model's sizes.

    Args:
        variant: "medium" or "large".
        device: where they are made.
        dtype: what everything is computed in.
        pixels: sides of pictures.
        blocks: how many of its blocks or layers a transformer or a text encoder has at most; None is all. A
            step of the whole takes as many times longer as it has more, and all of T5 is 9.5 GB.

    Raises:
        SettingsError: an unknown variant, or no blocks.
    """
    if variant not in VARIANTS:
        raise SettingsError(f"sizes must be one of {', '.join(VARIANTS)}, got {variant!r}")
    if blocks is not None and blocks < 1:
        raise SettingsError(f"blocks must be at least 1, got {blocks}")
    mmdit = _shortened(VARIANTS[variant], blocks)
    clip_l, clip_g, t5 = _shortened(CLIP_L, blocks), _shortened(CLIP_G, blocks), _shortened(T5_XXL, blocks)
    some = "" if blocks is None else f", at most {blocks} blocks of each part"

    def maker(make: Callable[[], Module]) -> Callable[[], Module]:
        return lambda: random_module(make, device, dtype)

    return Parts(
        name=f"random weights of SD3.5-{variant}'s sizes{some}",
        device=device,
        dtype=dtype,
        pixels=pixels,
        mmdit=maker(lambda: MMDiT(mmdit)),
        vae=maker(lambda: VAE(AUTOENCODER)),
        encoders={
            "CLIP-L": maker(lambda: CLIP(clip_l)),
            "CLIP-G": maker(lambda: CLIP(clip_g)),
            "T5": maker(lambda: T5(t5)),
        },
    )


Config = TypeVar("Config", MMDiTConfig, CLIPConfig, T5Config)


def _shortened(config: Config, blocks: int | None) -> Config:
    depth = config.depth if blocks is None else min(blocks, config.depth)
    if isinstance(config, MMDiTConfig):
        share = round(len(config.dual_blocks) * depth / config.depth)
        return replace(config, depth=depth, dual_blocks=tuple(range(share)))
    return replace(config, depth=depth)


def of_source(
    source: str | Path, device: torch.device, dtype: torch.dtype | None, pixels: tuple[int, ...] | None
) -> Parts:
    """A user's model, loaded whole.

    Args:
        source: as in `sd35.load`.
        device: where everything runs.
        dtype: None is what `sd35.load` takes.
        pixels: sides of pictures; None is the size that the model was trained at.

    Raises:
        SettingsError: pictures of a size that the model does not draw.
        CheckpointError: as `sd35.load`.
    """
    found = find(source)
    pixels = pixels or (max(found.size.width, found.size.height),)
    for side in pixels:
        check_size(side, side, found.mmdit, found.vae)
    pipe = load_found(found, device, dtype)
    named = {"CLIP-L": "clip_l", "CLIP-G": "clip_g", "T5": "t5"}
    there = {name: getattr(pipe.text, part) for name, part in named.items()}

    def maker(module: Module) -> Callable[[], Module]:
        return lambda: module

    return Parts(
        name=str(source),
        device=device,
        dtype=pipe.dtype,
        pixels=pixels,
        mmdit=maker(pipe.mmdit),
        vae=maker(pipe.vae),
        encoders={name: maker(module) for name, module in there.items() if module is not None},
        source=str(source),
    )


def random_module(make: Callable[[], Module], device: torch.device, dtype: torch.dtype) -> Module:
    """A module with random weights, made without memory first: it is never held in another dtype or place."""
    with torch.device("meta"):
        module = make()
    return randomise(module.to(dtype).to_empty(device=device))


@torch.no_grad()
def randomise(module: Module) -> Module:
    """Fill a module's weights with numbers that keep activations in range, and make it one that only runs.

    Matrices, tables and biases are normal; the scales of norms are 1.
    """
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not tensor.is_floating_point():
            tensor.zero_()
        elif tensor.ndim == 1 and name.endswith("weight"):
            tensor.fill_(1)
        else:
            tensor.normal_(std=0.02 if tensor.ndim < 4 else tensor[0].numel() ** -0.5)
    return module.eval().requires_grad_(False)
