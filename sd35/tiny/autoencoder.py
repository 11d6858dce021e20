"""Training of the embedded model's autoencoder, in two stages.

First encoder and decoder together, on crops, until the latents are good. Then the latents are
brought to the mean and deviation that SHIFT and SCALE assume, the encoder is frozen, and the decoder
alone learns to draw whole pictures from them more exactly. The transformer can train meanwhile: its
latents no longer change.
"""

from collections.abc import Sequence
from functools import partial
from math import log
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae import SCALE, SHIFT, VAE, VAEConfig
from vae.model import posterior_sample

from .colours import bias_of, colour_passing_vae
from .fit import Plan, fit, seeded
from .scenes import Scene, draw, training_scene

# No level has fewer than 96 channels. The norms have 32 groups; over a flat colour, a group of one
# channel is normed to 0 and a group of two to ±1, whatever the colour is. Three channels can tell it.
CONFIG = VAEConfig(channels=(96, 96, 128, 128), num_res_blocks=1, latent_channels=16)
SIZE = 128  # pixels of a side
BATCH = 4  # whole pictures

# First colours and rough shapes, then details: these hold so little of the error that under the first
# weight of the KL term they drown in the posterior's noise.
COLOURS = Plan(steps=1500, learning_rate=7e-4, warmup=50, ema=0.995)
COLOURS_KL = 1e-4
DETAILS = Plan(steps=900, learning_rate=7e-4, warmup=50, ema=0.995, decay=0.4)
DETAILS_KL = 1e-6
DETAILS_LOGVAR = -6.0  # what the posterior's log-variance restarts from
DECODER = Plan(steps=1000, learning_rate=5e-4, warmup=30, ema=0.99, decay=0.7)
DECODER_JITTERS = (0.25, 1.0)  # of its pictures, in turn: what the transformer draws, and anywhere
DECODER_NOISE = 0.5  # most of it, beside latents of deviation 1
SHARPEN = Plan(steps=1100, learning_rate=5e-4, warmup=30, ema=0.99, decay=1.0)
SHARPEN_NOISE = 0.2


def pictures(generator: torch.Generator, number: int, device: torch.device, jitter: float = 1.0) -> Tensor:
    """`number` training pictures, (B, 3, 128, 128) in [-1, 1]."""
    return pictures_of([training_scene(generator) for _ in range(number)], generator, device, jitter)


def pictures_of(
    scenes: Sequence[Scene], generator: torch.Generator, device: torch.device, jitter: float = 1.0
) -> Tensor:
    """These scenes, (B, 3, 128, 128) in [-1, 1], jittered by the generator."""
    return draw(scenes, generator, size=SIZE, jitter=jitter).to(device)


def train_joint(folder: Path, *, seed: int, device: torch.device) -> VAE:
    """Train encoder and decoder, then normalise the latents between them."""
    vae = colour_passing_vae(CONFIG, seed).to(device)

    def loss_at(step: int, *, stage: int, side: int, number: int, kl_weight: float) -> Tensor:
        generator = seeded(seed, stage, step)
        image = crops(pictures(generator, number // 2, device), side, generator)
        with torch.autocast(device.type, torch.bfloat16):
            mean, logvar = vae.moments(image)
            z = posterior_sample(mean, logvar, torch.randn(mean.shape, generator=generator).to(device))
            decoded = vae.decode((z - SHIFT) * SCALE).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return F.mse_loss(decoded, image) + kl_weight * kl

    def colours(step: int) -> Tensor:
        side, number = (32, 16) if step < 0.65 * COLOURS.steps else (64, 8)
        return loss_at(step, stage=1, side=side, number=number, kl_weight=COLOURS_KL)

    def details(step: int) -> Tensor:
        return loss_at(step, stage=7, side=64, number=8, kl_weight=DETAILS_KL)

    average = fit(vae, colours, COLOURS, folder / "colours.safetensors", seed=seed, label="colours")
    vae.load_state_dict(average.state_dict())
    out = vae.encoder.conv_out
    nn.init.zeros_(out.weight[CONFIG.latent_channels :])
    nn.init.constant_(bias_of(out)[CONFIG.latent_channels :], DETAILS_LOGVAR)
    average = fit(vae, details, DETAILS, folder / "details.safetensors", seed=seed, label="details")
    vae.load_state_dict(average.state_dict())
    normalise(vae, pictures(seeded(seed, 2), 512, device))
    return vae


def train_decoder(vae: VAE, folder: Path, *, seed: int, device: torch.device) -> VAE:
    """Train the decoder alone on whole pictures, from a `vae` of which the latents stay as they are.

    Latents that the transformer draws are not quite an encoder's. So half of those here bear noise, first
    more and then less, and the decoder learns what outlines look like beside what latents say.
    """
    vae.encoder.requires_grad_(False)
    # Faster on a CPU. (torch's stubs do not know this argument of Module.to.)
    vae = vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def loss_at(step: int, *, stage: int, most: float) -> Tensor:
        generator = seeded(seed, stage, step)
        jitter = DECODER_JITTERS[step % len(DECODER_JITTERS)]
        image = pictures(generator, BATCH, device, jitter).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(image)
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            amount = most * torch.rand(BATCH, 1, 1, 1, generator=generator).to(latents)
            amount[: BATCH // 2] = 0
            decoded = vae.decode(latents + amount * noise).float()
        return F.mse_loss(decoded, image)

    for label, plan, stage, most in (
        ("decoder", DECODER, 3, DECODER_NOISE),
        ("sharpen", SHARPEN, 10, SHARPEN_NOISE),
    ):
        loss = partial(loss_at, stage=stage, most=most)
        average = fit(vae, loss, plan, folder / f"{label}.safetensors", seed=seed, label=label)
        vae.load_state_dict(average.state_dict())
    return vae


def crops(image: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Two random squares of each image, (2B, 3, side, side): edges and corners at less cost than whole."""
    most = image.shape[-1] - side + 1
    corners = torch.randint(most, (2 * len(image), 2), generator=generator).tolist()
    return torch.stack([image[i // 2, :, y : y + side, x : x + side] for i, (y, x) in enumerate(corners)])


@torch.no_grad()
def normalise(vae: VAE, image: Tensor) -> None:
    """Give each latent channel mean 0 and deviation 1 over these pictures, by the weights beside it.

    The last convolution of the encoder is scaled and shifted, the first of the decoder inversely.
    (The shift is not exactly undone at the border, where that convolution pads with zeros; the
    training that follows learns it.)
    """
    z = torch.cat([vae.moments(part)[0] for part in image.split(16)])
    mean, deviation = z.mean(dim=(0, 2, 3)), z.std(dim=(0, 2, 3))
    scale = 1 / (SCALE * deviation)
    shift = SHIFT - mean * scale

    out, into = vae.encoder.conv_out, vae.decoder.conv_in
    n = len(scale)
    out.weight[:n] *= scale[:, None, None, None]
    bias_of(out)[:n] = bias_of(out)[:n] * scale + shift
    bias_of(out)[n:] += 2 * scale.log()
    into.weight /= scale[:, None, None]
    bias_of(into).sub_((into.weight * shift[:, None, None]).sum(dim=(1, 2, 3)))


def psnr(vae: VAE, image: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of a reconstruction in dB, for pictures of range 2: (B,)."""
    pairs = [(vae.decode(vae.encode(part)), part) for part in image.split(16)]
    error = torch.cat([(decoded - part).square().mean((1, 2, 3)) for decoded, part in pairs])
    return 10 * (log(4) - error.log()) / log(10)
