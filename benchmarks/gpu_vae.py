"""The measurements of `gpu`: the autoencoder, in both memory formats and with torch's own group norm."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_models import random_vae
from gpu_report import peak_of
from gpu_rows import Bench, finite, flops_of, free, profile
from torch import Tensor, nn


@contextlib.contextmanager
def searching(tried: bool) -> Iterator[None]:
    """Within the block, cuDNN tries its algorithms for each shape, or does not."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = tried
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def autoencoder(bench: Bench) -> None:
    """Decoding and encoding a picture, in both memory formats."""
    sizes, pixels = bench.sizes, bench.sizes.pixels
    vae = random_vae(sizes.vae, bench.device, bench.dtype)
    side = pixels // vae.config.factor
    latents = torch.randn(1, vae.config.latent_channels, side, side, device=bench.device)
    image = torch.rand(1, 3, pixels, pixels, device=bench.device) * 2 - 1
    runs: dict[str, Callable[[], Tensor]] = {
        "decode": lambda: vae.decode(latents),
        "encode": lambda: vae.encode(image),
    }
    flops = {name: flops_of(run) for name, run in runs.items()}
    for layout, memory in (
        ("contiguous", torch.contiguous_format),
        ("channels_last", torch.channels_last),
    ):
        vae.to(memory_format=memory)  # pyright: ignore[reportCallIssue]  (torch's hints leave it out)
        for name, run in runs.items():
            for tried in (False, True) if bench.is_cuda else (False,):
                with searching(tried):
                    free(bench.device)
                    peak = peak_of(run, bench.device)
                    timing = bench.measure(run, budget=0.3, most=10, warmups=1)
                what = f"VAE {name} {pixels} px, {layout}{', cudnn.benchmark' if tried else ''}"
                bench.report.add(what, timing, flops=flops[name], peak=peak, remark=finite(run()))
        profile(bench, f"VAE decode, {layout}", runs["decode"])
    vae.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    with of_torch(vae):
        for name, run in runs.items():
            timing = bench.measure(run, budget=0.3, most=10, warmups=1)
            what = f"VAE {name} {pixels} px, with torch's group norm"
            bench.report.add(what, timing, flops=flops[name], peak=peak_of(run, bench.device))


@contextlib.contextmanager
def of_torch(vae: nn.Module) -> Iterator[None]:
    """Within the block, every group norm is torch's own kernel."""
    norms = [module for module in vae.modules() if isinstance(module, nn.GroupNorm)]
    for norm in norms:
        norm.forward = partial(nn.GroupNorm.forward, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward
