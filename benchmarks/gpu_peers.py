"""The same models in diffusers, beside ours on the same inputs, in turn."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from gpu_models import inputs, parameters_gb, random_mmdit, random_vae, randomise
from gpu_report import peak_of
from gpu_rows import Bench, free
from torch import Tensor

from mmdit import MMDiTConfig
from vae import VAEConfig


def diffusers(bench: Bench) -> None:
    """A guided step, and decoding."""
    if importlib.util.find_spec("diffusers") is None:
        bench.report.add("diffusers", remark="is not installed here")
        return
    import diffusers as library

    bench.report.facts["diffusers"] = library.__version__
    transformer(bench)
    free(bench.device)
    autoencoder(bench)


def transformer(bench: Bench) -> None:
    """A guided step at both sizes."""
    config, device, dtype = bench.sizes.medium, bench.device, bench.dtype
    ours, theirs = random_mmdit(config, device, dtype), their_transformer(config, device, dtype)

    def step_of_each(pixels: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        latents, sigma, context, pooled = inputs(config, pixels, device, dtype)
        latents, timestep = latents.to(dtype), 1000 * sigma
        return (
            lambda: ours(latents, sigma, context, pooled),
            lambda: theirs(latents, context, pooled, timestep, return_dict=False)[0],
        )

    for pixels in (bench.sizes.pixels, bench.sizes.fewer_pixels):
        beside(bench, f"medium {pixels} px, guided step", *step_of_each(pixels))
    remark = f"ours {parameters_gb(ours):.2f} GB, theirs {parameters_gb(theirs):.2f} GB"
    bench.report.add("  weights of the transformer", remark=remark)


def autoencoder(bench: Bench) -> None:
    """Decoding one picture."""
    device, dtype, pixels = bench.device, bench.dtype, bench.sizes.pixels
    ours = random_vae(bench.sizes.vae, device, dtype)
    theirs = their_autoencoder(bench.sizes.vae, pixels, device, dtype)
    side = pixels // ours.config.factor
    latents = torch.randn(1, ours.config.latent_channels, side, side, device=device, dtype=dtype)
    beside(
        bench,
        f"VAE decode {pixels} px",
        lambda: ours.decode(latents),
        lambda: theirs.decode(latents, return_dict=False)[0],
    )


def beside(bench: Bench, name: str, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """Two rows, and how many times as long theirs takes."""
    peaks = peak_of(ours, bench.device), peak_of(theirs, bench.device)
    ours_timing, theirs_timing = bench.measure_each([ours, theirs], budget=1.5)
    ratio = theirs_timing.median / ours_timing.median
    bench.report.add(
        f"{name}, ours", ours_timing, peak=peaks[0], remark=f"theirs / ours {ratio:.3f}", ratio=ratio
    )
    bench.report.add(f"{name}, diffusers", theirs_timing, peak=peaks[1], remark="both models in memory")


def their_transformer(config: MMDiTConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """Diffusers' transformer of the same sizes, with random weights."""
    from diffusers import SD3Transformer2DModel

    with torch.device(device):
        model = SD3Transformer2DModel(
            sample_size=128,
            patch_size=config.patch_size,
            in_channels=config.channels,
            out_channels=config.channels,
            num_layers=config.depth,
            attention_head_dim=config.dim // config.num_heads,
            num_attention_heads=config.num_heads,
            joint_attention_dim=config.context_dim,
            caption_projection_dim=config.dim,
            pooled_projection_dim=config.pooled_dim,
            pos_embed_max_size=config.pos_embed_size,
            dual_attention_layers=config.dual_blocks,
            qk_norm="rms_norm",
        )
    return randomise(model.to(device, dtype))


def their_autoencoder(config: VAEConfig, pixels: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Diffusers' autoencoder of the same sizes, with random weights."""
    from diffusers import AutoencoderKL

    levels = len(config.channels)
    with torch.device(device):
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.channels,
            layers_per_block=config.num_res_blocks,
            latent_channels=config.latent_channels,
            sample_size=pixels,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    return randomise(model.to(device, dtype))
