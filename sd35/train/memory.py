"""How much memory a run will take, told before its first step."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdit import MMDiT
from vae import VAE

from .objective import Predict
from .settings import Training

GB = 1e9
KERNELS, LOST = 0.075e9, 1.1
"""What a process on a CPU has beside the tensors that are alive: torch's kernels and their buffers, and what
its allocator loses between tensors. Measured; see benchmarks/training_memory.py."""
SIDES = (4, 8)
"""Sides of the two small pictures by which activations are measured, in patches or cells of latents."""
STATES = {"adamw": 8.0, "adamw8bit": 2.0, "muon": 4.0}
"""Bytes that an optimizer remembers of each weight."""


@dataclass(frozen=True)
class Memory:
    """What a run takes, in bytes."""

    weights: float
    """Of the networks, as they compute."""
    training: float
    """Masters, the optimizer's memory and the average."""
    gradients: float
    """Of what is trained, with what the optimizer needs beside them while it steps."""
    activations: float
    """What is kept of a forward for its gradients, at the largest size, and a block of gradients of it."""
    accumulates: bool = False
    """Whether gradients of a micro-batch are kept while the next is computed."""
    on_cpu: bool = False
    """Whether what the process has beside its tensors counts: a card's own is not known before it is used."""

    @property
    def step(self) -> float:
        """What comes and goes in a step: gradients take the place that activations leave, block by block."""
        if self.accumulates:
            return self.activations + self.gradients
        return max(self.activations, self.gradients)

    @property
    def tensors(self) -> float:
        """All of it that is tensors."""
        return self.weights + self.training + self.step

    @property
    def total(self) -> float:
        """Of the process, above what it has before it loads a model."""
        return LOST * self.tensors + KERNELS if self.on_cpu else self.tensors

    def __str__(self) -> str:
        return (
            f"about {self.total / GB:.3g} GB: {self.weights / GB:.3g} of weights, {self.training / GB:.3g} "
            f"of what trains them, {self.step / GB:.3g} of activations and gradients"
            + (f", {(self.total - self.tensors) / GB:.3g} beside them" if self.on_cpu else "")
        )


def memory_of(
    mmdit: MMDiT,
    parameters: Mapping[str, nn.Parameter],
    largest: tuple[int, int, int],
    training: Training,
    predict: Predict | None = None,
) -> Memory:
    """What training takes with these parameters on these pictures, on the device of the network.

    Activations are measured, on two small pictures, and grow in a straight line with the number of tokens:
    attention keeps no table of tokens by tokens.

    Args:
        mmdit: the transformer, with what is trained in place, before its blocks are checkpointed.
        parameters: what is trained.
        largest: width, height and tokens of text of the largest picture.
        training: the settings.
        predict: what is computed, where it is more than the transformer.
    """
    config, device, (width, height, text) = mmdit.config, mmdit.pos_embed.device, largest
    held = {*mmdit.parameters(), *parameters.values()}

    def forward(side: int) -> Tensor:
        sides = min(side, config.pos_embed_size) * config.patch_size
        latents = torch.zeros(1, config.channels, sides, sides, device=device)
        context = torch.zeros(1, text, config.context_dim, device=device)
        pooled = torch.zeros(1, config.pooled_dim, device=device)
        return (predict or mmdit)(latents, torch.ones(1, device=device), context, pooled)

    tokens, batch = width * height / (8 * config.patch_size) ** 2, training.at_once
    each = _kept(forward, held, tokens)
    kept, one = batch * each, training.batch_size * each / config.depth  # networks' calls go back in turn
    if training.checkpoint_blocks:  # the inputs of each block, and all of one
        size = next(mmdit.parameters()).element_size()
        kept = one + batch * config.depth * (tokens + text) * config.dim * size
    return _memory(held, parameters, training, kept + one)


def memory_of_vae(
    vae: VAE,
    parameters: Mapping[str, nn.Parameter],
    largest: tuple[int, int],
    training: Training,
    loss: Callable[[Tensor], Tensor],
) -> Memory:
    """The same of an autoencoder.

    Args:
        vae: the autoencoder.
        parameters: what is trained.
        largest: width and height of the largest picture.
        training: the settings.
        loss: of images (1, 3, H, W).
    """
    factor, held = vae.config.factor, {*vae.parameters()}
    device = next(vae.parameters()).device

    def forward(side: int) -> Tensor:
        return loss(torch.zeros(1, 3, factor * side, factor * side, device=device))

    kept = training.at_once * _kept(forward, held, largest[0] * largest[1] / factor**2)
    return _memory(held, parameters, training, kept)


def _memory(
    held: set[nn.Parameter],
    parameters: Mapping[str, nn.Parameter],
    training: Training,
    activations: float,
) -> Memory:
    """All of it, of networks, what is trained of them, and activations."""
    count = sum(one.numel() for one in parameters.values())
    narrow = sum(one.numel() for one in parameters.values() if one.element_size() < 4)
    each = STATES[training.optimizer] + (4 if training.ema is not None else 0)
    # What an optimizer needs beside gradients while it steps: Muon for the products of its matrices, and on a
    # card torch's AdamW, which takes all weights at once, for the roots of their second moments.
    device = next(iter(parameters.values())).device.type
    beside = 8 if training.optimizer == "muon" else 4 * (device == "cuda")
    return Memory(
        weights=sum(parameter.numel() * parameter.element_size() for parameter in held),
        training=count * each + 4 * narrow,
        gradients=(4 + beside) * count,
        activations=activations,
        accumulates=training.accumulate > 1,
        on_cpu=device == "cpu",
    )


def _kept(forward: Callable[[int], Tensor], held: set[nn.Parameter], cells: float) -> float:
    """Bytes that a forward of one picture keeps for its gradients, but for the parameters that are held.

    Args:
        forward: of a square picture of so many cells a side.
        held: parameters.
        cells: of the picture that is asked for.
    """
    known, found = {one.untyped_storage().data_ptr() for one in held}, []
    for side in SIDES:
        with _counted(known) as storages:
            forward(side)
        found.append(sum(storages.values()))
    low, high = found
    return low + (high - low) * (cells - SIDES[0] ** 2) / (SIDES[1] ** 2 - SIDES[0] ** 2)


@contextmanager
def _counted(known: set[int]) -> Iterator[dict[int, int]]:
    """Note the memory of every tensor that is kept for gradients, but for what is known; each counts once."""
    found: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is given away twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found
