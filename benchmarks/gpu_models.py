"""The released models' sizes with random weights, made on the device; or small ones of the same kind."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmdit import MMDiT, MMDiTConfig
from sd35.bench.parts import AUTOENCODER, CLIP_G, CLIP_L, T5_XXL, VARIANTS, random_module
from sd35.bench.stages import TOKENS
from textenc import CLIP, T5, CLIPConfig, Encoding, Prompt, T5Config
from vae import VAE, VAEConfig


@dataclass(frozen=True)
class Sizes:
    """What is measured: the models, and the sides of the pictures in pixels."""

    medium: MMDiTConfig = VARIANTS["medium"]
    large: MMDiTConfig = VARIANTS["large"]
    vae: VAEConfig = AUTOENCODER
    clip_l: CLIPConfig = CLIP_L
    clip_g: CLIPConfig = CLIP_G
    t5: T5Config = T5_XXL
    pixels: int = 1024
    fewer_pixels: int = 512
    steps: int = 28
    gemm: int = 8192
    copied: int = 2**31  # bytes
    repeats: int = 20  # of a call, at most


SMALL = Sizes(
    medium=replace(VARIANTS["medium"], dim=128, depth=2, num_heads=2, pos_embed_size=16, dual_blocks=(0,)),
    large=replace(VARIANTS["large"], dim=128, depth=2, num_heads=2, pos_embed_size=16),
    vae=VAEConfig((32, 32, 32, 32), 1, 16),
    clip_l=replace(CLIP_L, vocab_size=100, dim=64, depth=2, num_heads=1, mlp_dim=128),
    clip_g=replace(CLIP_G, vocab_size=100, dim=64, depth=2, num_heads=1, mlp_dim=128, projection_dim=64),
    t5=T5Config(100, 128, 2, 2, 64, 256, 32),
    pixels=64,
    fewer_pixels=32,
    steps=2,
    gemm=128,
    copied=2**20,
    repeats=2,
)
"""For a look at whether everything runs, on any machine."""


def random_mmdit(config: MMDiTConfig, device: torch.device, dtype: torch.dtype) -> MMDiT:
    """A transformer of these sizes."""
    return random_module(lambda: MMDiT(config), device, dtype)


def random_vae(config: VAEConfig, device: torch.device, dtype: torch.dtype) -> VAE:
    """An autoencoder of these sizes."""
    return random_module(lambda: VAE(config), device, dtype)


def random_clip(config: CLIPConfig, device: torch.device, dtype: torch.dtype) -> CLIP:
    """A CLIP of these sizes."""
    return random_module(lambda: CLIP(config), device, dtype)


def random_t5(config: T5Config, device: torch.device, dtype: torch.dtype) -> T5:
    """A T5 of these sizes."""
    return random_module(lambda: T5(config), device, dtype)


def inputs(
    config: MMDiTConfig, pixels: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a guided step gives the transformer: latents, sigma, context and pooled text, a batch of two."""
    side = pixels // 8
    return (
        torch.randn(2, config.channels, side, side, device=device),
        torch.full((2,), 0.7, device=device),
        torch.randn(2, TOKENS, config.context_dim, device=device, dtype=dtype),
        torch.randn(2, config.pooled_dim, device=device, dtype=dtype),
    )


def random_encoding(config: MMDiTConfig, device: torch.device, dtype: torch.dtype) -> Encoding:
    """A prompt as the text encoders would give it, by its shape."""
    context = torch.randn(1, TOKENS, config.context_dim, device=device, dtype=dtype)
    pooled = torch.randn(1, config.pooled_dim, device=device, dtype=dtype)
    return Encoding(context, pooled, (Prompt(),), ((),), (), "reference")


def parameters_gb(module: nn.Module) -> float:
    """What a module holds, in GB of 10⁹ bytes."""
    return sum(tensor.nbytes for tensor in module.state_dict().values()) / 1e9
