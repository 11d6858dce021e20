"""Train the autoencoder: pictures that come back, and latents that stay near a normal distribution."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from vae import SCALE, SHIFT, VAE
from vae.image import read

from ..documented import takes
from ..found import Place
from ..noise import seeded
from ..saved.write import written
from .buckets import batches, bucket_sizes, fitted, nearest
from .cache import digest
from .data import CHANCE, ORDER
from .folder import read_folder
from .loop import fit
from .memory import memory_of_vae
from .methods import VaeTraining
from .session import Places, Session
from .settings import training_of

FILE, PREFIX = "vae.safetensors", "first_stage_model."
Perceptual = Callable[[Tensor, Tensor], Tensor]
"""perceptual(a, b) -> a distance of images (B, 3, H, W) in [-1, 1], (B, ...) or a scalar; LPIPS is one."""


@takes(VaeTraining, but=VaeTraining.without)
def train_vae(
    source: Place,
    data: str | Path,
    output: str | Path,
    *,
    perceptual: Perceptual | None = None,
    perceptual_weight: float = 1.0,
    places: Mapping[str, Any] | None = None,
    **given: Any,
) -> Path:
    """Train the autoencoder of a model on a folder of pictures; captions are not needed.

        E |decode(z) - image| + kl · KL(posterior ‖ normal) + perceptual_weight · perceptual(decode(z), image)

    Args:
        source: the model, as in `sd35.load`.
        data: the folder.
        output: the folder of the run, with vae.safetensors, state.safetensors and log.csv.
        perceptual: see `Perceptual`; None leaves the term out.
        perceptual_weight: of that term.
        places: as in `train_lora`.
        given: the settings below.

    Returns:
        The path of the autoencoder, under the official keys.

    Raises:
        SettingsError: anything that cannot be trained with, before work starts.
        DivergedError: the loss is not a number, and the weights before are on disk; or the run is lost.
    """
    training = training_of(VaeTraining, given)
    session = Session(Places(source=source, data=data, output=output, **(places or {})), training, "vae")
    examples, notes = read_folder(Path(data), "", skip_unreadable=training.skip_unreadable)
    session.say(*notes, f"{len(examples)} pictures in {data}")
    vae = session.autoencoder()
    vae.decoder.requires_grad_(True)
    vae.encoder.requires_grad_(not training.decoder_only)
    parameters = {name: one for name, one in vae.named_parameters() if one.requires_grad}

    side = training.resolution or min(session.found.size)
    multiple = vae.config.factor * session.found.mmdit.patch_size
    sizes = bucket_sizes(side, multiple=multiple, longest=2 * side) if training.buckets else [(side, side)]
    placed = [nearest(example.size, sizes) for example in examples]
    largest = max(placed, key=lambda one: one[0] * one[1])
    chance = seeded(training.seed, CHANCE)
    memory = memory_of_vae(
        vae, parameters, largest, training, lambda image: vae_loss(vae, image, training, chance)[0]
    )
    session.say(f"autoencoder: {memory}")
    world, count = session.world, training.batch_size
    per_epoch = len(batches(placed, count, seeded(training.seed, ORDER, 0)))

    def loss(number: int) -> Tensor:
        epoch, place = divmod(number, per_epoch)
        order = batches(placed, count, seeded(training.seed, ORDER, epoch))[place][world.rank :: world.size]
        mirrored = torch.rand(count, generator=seeded(training.seed, CHANCE, number))[
            world.rank :: world.size
        ]
        images = [fitted(read(examples[one].path), placed[one]) for one in order]
        if training.flip:
            images = [
                one.flip(3) if chance < 0.5 else one for one, chance in zip(images, mirrored, strict=True)
            ]
        image = torch.cat(images).to(session.device)
        total, decoded = vae_loss(vae, image, training, seeded(training.seed, CHANCE, number, world.rank))
        if perceptual is not None:
            total = total + perceptual_weight * perceptual(decoded, image).mean()
        return total

    def export(folder: Path) -> None:
        tensors = {PREFIX + name: one.contiguous() for name, one in vae.state_dict().items()}
        with written(folder / FILE, overwrite=True) as temporary:
            save_file(tensors, temporary)

    data_digest = digest(*(example.path.read_bytes() for example in examples))
    fit(parameters, loss, training, session.bare_run(pictures=data_digest), export)
    return session.folder / FILE


def vae_loss(
    vae: VAE, image: Tensor, training: VaeTraining, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Reconstruction and divergence of a batch, and what was decoded.

    Args:
        vae: the autoencoder.
        image: (B, 3, H, W) in [-1, 1].
        training: its `reconstruction`, `kl` and `decoder_only`.
        generator: of the draw from the posterior, on the CPU.
    """
    with torch.no_grad() if training.decoder_only else nullcontext():
        mean, logvar = vae.moments(image)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    z = mean + torch.exp(0.5 * logvar) * noise
    decoded = vae.decode((z - SHIFT) * SCALE)
    distance = F.l1_loss if training.reconstruction == "l1" else F.mse_loss
    loss = distance(decoded.float(), image.float())
    if not training.decoder_only and training.kl:
        loss = loss + training.kl * posterior_kl(mean, logvar).mean()
    return loss, decoded


def posterior_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)) of each picture, summed over its latents: (B,)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)
