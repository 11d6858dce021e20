"""The same models in diffusers, beside ours on the same inputs, in turn."""

import importlib.util
from collections.abc import Callable
from types import ModuleType

import torch
from gpu_models import inputs, random_mmdit, random_vae
from gpu_report import peak_of
from gpu_rows import Bench, free
from torch import Tensor


def diffusers(bench: Bench) -> None:
    """A guided step, and decoding."""
    if importlib.util.find_spec("diffusers") is None:
        bench.report.add("diffusers", remark="is not installed here")
        return
    import diffusers_peer as peer

    bench.report.facts["beside"] = peer.NAME
    transformer(bench, peer)
    free(bench.device)
    autoencoder(bench, peer)


def transformer(bench: Bench, peer: ModuleType) -> None:
    """A guided step at both sizes."""
    config, device, dtype = bench.sizes.medium, bench.device, bench.dtype
    ours, theirs = random_mmdit(config, device, dtype), peer.transformer(config, device, dtype)

    def step_of_each(pixels: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        latents, *rest = inputs(config, pixels, device, dtype)
        latents = latents.to(dtype)
        return lambda: ours(latents, *rest), lambda: theirs(latents, *rest)

    for pixels in (bench.sizes.pixels, bench.sizes.fewer_pixels):
        beside(bench, f"medium {pixels} px, guided step", *step_of_each(pixels))


def autoencoder(bench: Bench, peer: ModuleType) -> None:
    """Decoding one picture."""
    device, dtype, pixels = bench.device, bench.dtype, bench.sizes.pixels
    ours = random_vae(bench.sizes.vae, device, dtype)
    decode, _ = peer.autoencoder(bench.sizes.vae, device, dtype)
    side = pixels // ours.config.factor
    latents = torch.randn(1, ours.config.latent_channels, side, side, device=device, dtype=dtype)
    beside(
        bench,
        f"VAE decode {pixels} px",
        lambda: ours.decode(latents),
        lambda: decode(latents),
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
