"""How much memory a run will take, told before its first step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdit import MMDiT

from .settings import Training

GB = 1e9
SIDES = (4, 8)
"""Sides, in patches, of the two small pictures by which activations are measured."""
STATES = {"adamw": 8.0, "adamw8bit": 2.0, "muon": 4.0}
"""Bytes that an optimizer remembers of each weight."""


@dataclass(frozen=True)
class Memory:
    """What a run takes, in bytes."""

    weights: float
    """Of the network, as it computes."""
    training: float
    """Masters, gradients, the optimizer's memory and the average."""
    activations: float
    """What is kept of a forward for its gradients, at the largest size."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.training + self.activations

    def __str__(self) -> str:
        return (
            f"about {self.total / GB:.3g} GB: {self.weights / GB:.3g} of weights, {self.training / GB:.3g} "
            f"to train them, {self.activations / GB:.3g} of activations"
        )


def memory_of(
    mmdit: MMDiT,
    parameters: Mapping[str, nn.Parameter],
    largest: tuple[int, int, int],
    training: Training,
) -> Memory:
    """What training takes with these parameters on these pictures, on the device of the network.

    Activations are measured, on two small pictures, and grow in a straight line with the number of tokens:
    attention keeps no table of tokens by tokens.

    Args:
        mmdit: the transformer, with what is trained in place, before its blocks are checkpointed.
        parameters: what is trained.
        largest: width, height and tokens of text of the largest picture.
        training: the settings.
    """
    count = sum(one.numel() for one in parameters.values())
    narrow = sum(one.numel() for one in parameters.values() if one.element_size() < 4)
    each = STATES[training.optimizer] + 4 + (4 if training.ema is not None else 0)
    patch = 8 * mmdit.config.patch_size
    width, height, text = largest
    tokens, batch = width * height / patch**2, training.batch_size
    low, high = (_kept(mmdit, side, text) for side in SIDES)
    slope = (high - low) / (SIDES[1] ** 2 - SIDES[0] ** 2)
    kept = batch * (low + slope * (tokens - SIDES[0] ** 2))
    if training.checkpoint_blocks:  # the inputs of each block, and all of one
        depth = mmdit.config.depth
        size = next(mmdit.parameters()).element_size()
        kept = kept / depth + batch * depth * (tokens + text) * mmdit.config.dim * size
    weights = sum(one.numel() * one.element_size() for one in {*mmdit.parameters(), *parameters.values()})
    return Memory(weights, count * each + 4 * narrow, kept)


def _kept(mmdit: MMDiT, side: int, tokens: int) -> float:
    """Bytes that a forward of one sample keeps for its gradients, parameters aside."""
    config, device = mmdit.config, mmdit.pos_embed.device
    sides = min(side, config.pos_embed_size) * config.patch_size
    latents = torch.zeros(1, config.channels, sides, sides, device=device)
    context = torch.zeros(1, tokens, config.context_dim, device=device)
    pooled = torch.zeros(1, config.pooled_dim, device=device)
    with _counted({one.untyped_storage().data_ptr() for one in mmdit.parameters()}) as storages:
        mmdit(latents, torch.ones(1, device=device), context, pooled)
    return sum(storages.values())


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
