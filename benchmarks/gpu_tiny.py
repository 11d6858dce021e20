"""The training of the embedded model's autoencoder: what cuDNN's search for algorithms takes, and gives."""

import torch
import torch.nn.functional as F
from gpu_report import once, peak_of, seconds
from gpu_rows import Bench, joined
from gpu_vae import searching

from sd35.tiny.autoencoder import CONFIG
from sd35.tiny.colours import colour_passing_vae

PICTURES = 32


@torch.enable_grad()
def tiny_autoencoder(bench: Bench) -> None:
    """A forward and backward of 32 pictures as the training takes them, without the search and with it."""
    number = PICTURES if bench.is_cuda else 1
    vae = colour_passing_vae(CONFIG, 0).to(bench.device, torch.bfloat16)
    vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's hints leave it out)
    side = 128 if bench.is_cuda else 32
    image = torch.rand(number, 3, side, side, device=bench.device).bfloat16()
    image = image.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        mean = vae.encoder(image)[:, : CONFIG.latent_channels]
        F.mse_loss(vae.decoder(mean).float(), image.float()).backward()
        vae.zero_grad(set_to_none=True)

    for tried in (False, True) if bench.is_cuda else (False,):
        with searching(tried):
            first = once(step, bench.device)
            timing, peak = bench.measure(step, budget=0.5), peak_of(step, bench.device)
        what = f"tiny autoencoder, forward and backward of {number}{', cudnn.benchmark' if tried else ''}"
        bench.report.add(what, timing, peak=peak, remark=joined(f"first {seconds(first)}"))
