"""Training of the embedded model's autoencoder, in two stages.

First encoder and decoder together, until the latents are good. Then the latents are brought to the mean
and deviation that SHIFT and SCALE assume, the encoder is frozen, and the decoder alone learns to draw
more exactly from them.

Its latents are to be easy to learn and to stay in a saved picture, which the loss asks for beside a
likeness: they bear a little noise; a latent at half the size decodes to the picture at half the size; and
what was decoded from noisy latents is read back, after 8 bits, as those same latents.
"""

from collections.abc import Callable
from dataclasses import replace
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae import SCALE, SHIFT, VAE, VAEConfig

from ..noise import seeded
from .bank import Bank
from .colours import bias_of, colour_passing_vae
from .fit import Plan, Run, Trainer
from .painting import draw, paint_at_random
from .scenes import training_scene

# No level has fewer than 96 channels. The norms have 32 groups; over a flat colour, a group of one
# channel is normed to 0 and a group of two to ±1, whatever the colour is. Three channels can tell it.
CONFIG = VAEConfig(channels=(96, 96, 128, 128), num_res_blocks=1, latent_channels=16)
JOINT = Plan(learning_rate=7e-4, muon=2.0, warmup=0.05, decay=0.4, ema=0.995)
DECODER = Plan(learning_rate=5e-4, muon=2.0, warmup=0.02, decay=0.9, ema=0.995)
JOINT_SHARE = 0.68  # of the time for both stages
ON_RATE = 0.5  # of the learning rates, for one that has learnt already
JITTERS = (0.25, 1.0)  # of the pictures, in turn: what the transformer draws, and anywhere
NOISE = (
    0.05  # at most, of the latents' deviation, in training; and the posterior's, which is the same for all
)
HALF_WEIGHT = 0.1  # of the error at half the size
BACK_WEIGHT = 0.1  # of the error of latents that are read back, relative to their variance
BACK_FROM = 0.15  # share of the first stage's time after which they are
SIZE_WEIGHT = 1e-5  # of the latents' mean square, so that their scale has a place to stay
HIDDEN = ("conv_in", "conv_out", "norm")  # parameters with none of these in their names are Muon's


def train_autoencoder(
    run: Run,
    bank: Bank,
    *,
    batch: int,
    seed: int,
    until: float,
    device: torch.device,
    watch: Callable[[Trainer], None],
    vae: VAE | None = None,
) -> VAE:
    """Train an autoencoder from nothing, or one further.

    Args:
        run: the clock and the log.
        bank: scenes to paint.
        batch: pictures of a step.
        seed: of weights, pictures and noise.
        until: seconds before the run's end at which to be done.
        device: where to train.
        watch: told of each stage's trainer, for what is saved on the way.
        vae: one to train on, in place, with lower learning rates; None begins from nothing.
    """
    plans = [JOINT, DECODER] if vae is None else [slower(plan) for plan in (JOINT, DECODER)]
    vae = (colour_passing_vae(CONFIG, seed) if vae is None else vae).to(device)
    generator = seeded(seed, 1, device=device)
    bank.fill(batch)
    joint_until = run.left() - JOINT_SHARE * (run.left() - until)
    _stage(run, vae, bank, batch, generator, joint_until, watch, plans[0], decoder_only=False)
    normalise(vae, sample(bank, min(512, 8 * batch), generator, 0.25))
    _stage(run, vae, bank, batch, generator, until, watch, plans[1], decoder_only=True)
    picture = sample(bank, min(256, 8 * batch), generator, 0.25)
    decibels, back = psnr(vae, picture), read_back(vae, picture, generator)
    run.say(
        f"autoencoder: PSNR {decibels.mean():.2f} dB, worst {decibels.min():.2f}; "
        f"latents read back from 8 bits: error {back:.4f} of their deviation"
    )
    return vae


def slower(plan: Plan) -> Plan:
    """The plan for a model that has learnt already."""
    return replace(plan, learning_rate=ON_RATE * plan.learning_rate)


def _stage(
    run: Run,
    vae: VAE,
    bank: Bank,
    batch: int,
    generator: torch.Generator,
    until: float,
    watch: Callable[[Trainer], None],
    plan: Plan,
    *,
    decoder_only: bool,
) -> None:
    """Train a VAE in place, at the end of which it is the average over the stage."""
    device = generator.device
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    trainer = Trainer(
        vae,
        plan,
        is_hidden,
        is_trained=lambda name: not decoder_only or name.startswith("decoder."),
        layout=layout,
    )
    watch(trainer)
    worker = trainer.worker
    assert isinstance(worker, VAE)
    worker.encoder.requires_grad_(not decoder_only)
    losses = {name: torch.zeros((), device=device) for name in ("picture", "half", "back")}
    label = "decoder" if decoder_only else "autoencoder"
    for share in run.stage(label, until, examples=batch, losses=losses, trainer=trainer):
        bank.fill()
        image = sample(bank, batch, generator, JITTERS[trainer.steps % 2])
        total = _loss(
            worker,
            image.contiguous(memory_format=layout) if device.type == "cuda" else image,
            generator,
            losses,
            back=decoder_only or share > BACK_FROM,
        )
        total.backward()
        trainer.step(share)
    trainer.finish()


def _loss(
    worker: VAE, image: Tensor, generator: torch.Generator, losses: dict[str, Tensor], *, back: bool
) -> Tensor:
    """What a batch of pictures (B, 3, S, S) costs; the parts go to `losses`."""
    batch, few = len(image), max(1, len(image) // 4)
    mean = worker.encoder(image.bfloat16())[:, : CONFIG.latent_channels].float()
    deviation = mean.detach().std(dim=(0, 2, 3), keepdim=True)
    amount = NOISE * torch.rand(batch, 1, 1, 1, generator=generator, device=image.device)
    amount[:few] = NOISE  # of those that are read back
    noise = torch.randn(mean.shape, generator=generator, device=image.device)
    z = mean + amount * deviation * noise
    decoded = worker.decoder(z.bfloat16()).float()
    picture = F.mse_loss(decoded, image)

    half = worker.decoder(F.avg_pool2d(z[-few:], 2).bfloat16()).float()
    half_error = F.mse_loss(half, F.avg_pool2d(image[-few:], 2))
    total = picture + HALF_WEIGHT * half_error + SIZE_WEIGHT * mean.square().mean()
    losses["picture"], losses["half"] = picture.detach(), half_error.detach()
    if back:
        again = worker.encoder(saved(decoded[:few], generator).bfloat16())[:, : CONFIG.latent_channels]
        back_error = ((again.float() - z[:few].detach()) / deviation).square().mean()
        total = total + BACK_WEIGHT * back_error
        losses["back"] = back_error.detach()
    return total


def saved(image: Tensor, generator: torch.Generator) -> Tensor:
    """An image as a file of 8 bits gives it back, near enough: clamped, and off by up to half a step.

    Noise stands in for the rounding, through which no gradient comes.
    """
    step = 2 / 255
    off = torch.rand(image.shape, generator=generator, device=image.device) - 0.5
    return image.clamp(-1, 1) + step * off


def is_hidden(name: str) -> bool:
    """Whether a VAE's parameter of this name is the kernel of a convolution between hidden layers."""
    return name.endswith(".weight") and not any(word in name for word in HIDDEN)


def sample(bank: Bank, number: int, generator: torch.Generator, jitter: float) -> Tensor:
    """Pictures of scenes that are in the bank by now, (B, 3, 128, 128)."""
    rows = torch.randint(len(bank), (number,), generator=generator, device=generator.device)
    return paint_at_random(bank.tables[rows], generator, jitter=jitter)


def pictures(generator: torch.Generator, number: int, device: torch.device, jitter: float = 1.0) -> Tensor:
    """`number` training pictures from a CPU generator, the same everywhere: (B, 3, 128, 128) in [-1, 1]."""
    return draw([training_scene(generator) for _ in range(number)], generator, jitter=jitter, device=device)


@torch.no_grad()
def normalise(vae: VAE, image: Tensor) -> None:
    """Give each latent channel mean 0 and deviation 1 over these pictures, by the weights beside it.

    The last convolution of the encoder is scaled and shifted, the first of the decoder inversely.
    (The shift is not exactly undone at the border, where that convolution pads with zeros; the
    training that follows learns it.) The posterior gets the deviation NOISE everywhere.
    """
    z = torch.cat([vae.moments(part)[0] for part in image.split(16)])
    mean, deviation = z.mean(dim=(0, 2, 3)), z.std(dim=(0, 2, 3))
    scale = 1 / (SCALE * deviation)
    shift = SHIFT - mean * scale

    out, into = vae.encoder.conv_out, vae.decoder.conv_in
    n = len(scale)
    out.weight[:n] *= scale[:, None, None, None]
    bias_of(out)[:n] = bias_of(out)[:n] * scale + shift
    nn.init.zeros_(out.weight[n:])
    nn.init.constant_(bias_of(out)[n:], 2 * log(NOISE / SCALE))
    into.weight /= scale[:, None, None]
    bias_of(into).sub_((into.weight * shift[:, None, None]).sum(dim=(1, 2, 3)))


@torch.no_grad()
def psnr(vae: VAE, image: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of a reconstruction in dB, for pictures of range 2: (B,)."""
    pairs = [(vae.decode(vae.encode(part)), part) for part in image.split(16)]
    error = torch.cat([(decoded - part).square().mean((1, 2, 3)) for decoded, part in pairs])
    return 10 * (log(4) - error.log()) / log(10)


@torch.no_grad()
def read_back(vae: VAE, image: Tensor, generator: torch.Generator) -> float:
    """How far latents with the posterior's noise are from what a saved picture of them gives back.

    The root of the mean square error, where the latents have a deviation of about 1.
    """
    errors = []
    for part in image.split(16):
        latents = vae.encode(part)
        latents = latents + NOISE * torch.randn(
            latents.shape, generator=generator, device=generator.device
        ).to(latents)
        eight = ((vae.decode(latents).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        errors.append((vae.encode(eight) - latents).square().mean())
    return float(torch.stack(errors).mean().sqrt())
