"""How much memory a run will take, told before its first step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdit import MMDiT

from .objective import Predict
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
    """Of the networks, as they compute."""
    training: float
    """Masters, the optimizer's memory and the average."""
    gradients: float
    """Of what is trained, with what the optimizer needs beside them while it steps."""
    activations: float
    """What is kept of a forward for its gradients, at the largest size, and a block of gradients of it."""
    accumulates: bool = False
    """Whether gradients of a micro-batch are kept while the next is computed."""

    @property
    def step(self) -> float:
        """What comes and goes in a step: gradients take the place that activations leave, block by block."""
        if self.accumulates:
            return self.activations + self.gradients
        return max(self.activations, self.gradients)

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.training + self.step

    def __str__(self) -> str:
        return (
            f"about {self.total / GB:.3g} GB: {self.weights / GB:.3g} of weights, {self.training / GB:.3g} "
            f"of what trains them, {self.step / GB:.3g} of activations and gradients"
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
    count = sum(one.numel() for one in parameters.values())
    narrow = sum(one.numel() for one in parameters.values() if one.element_size() < 4)
    each = STATES[training.optimizer] + (4 if training.ema is not None else 0)
    patch = 8 * mmdit.config.patch_size
    width, height, text = largest
    tokens, batch = width * height / patch**2, training.batch_size
    held = {*mmdit.parameters(), *parameters.values()}
    low, high = (_kept(mmdit, predict or mmdit, side, text, held) for side in SIDES)
    slope = (high - low) / (SIDES[1] ** 2 - SIDES[0] ** 2)
    kept = batch * (low + slope * (tokens - SIDES[0] ** 2))
    depth, size = mmdit.config.depth, next(mmdit.parameters()).element_size()
    one = kept / depth
    if training.checkpoint_blocks:  # the inputs of each block, and all of one
        kept = one + batch * depth * (tokens + text) * mmdit.config.dim * size
    # What an optimizer needs beside gradients while it steps: Muon for the products of its matrices, and on a
    # card torch's AdamW, which takes all weights at once, for the roots of their second moments.
    beside = 8 if training.optimizer == "muon" else 4 * mmdit.pos_embed.is_cuda
    weights = sum(parameter.numel() * parameter.element_size() for parameter in held)
    return Memory(
        weights, count * each + 4 * narrow, (4 + beside) * count, kept + one, training.accumulate > 1
    )


def _kept(mmdit: MMDiT, predict: Predict, side: int, tokens: int, held: set[nn.Parameter]) -> float:
    """Bytes that a forward of one sample keeps for its gradients, the parameters that are held aside."""
    config, device = mmdit.config, mmdit.pos_embed.device
    sides = min(side, config.pos_embed_size) * config.patch_size
    latents = torch.zeros(1, config.channels, sides, sides, device=device)
    context = torch.zeros(1, tokens, config.context_dim, device=device)
    pooled = torch.zeros(1, config.pooled_dim, device=device)
    with _counted({one.untyped_storage().data_ptr() for one in held}) as storages:
        predict(latents, torch.ones(1, device=device), context, pooled)
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
