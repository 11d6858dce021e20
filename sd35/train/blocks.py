"""What is done to each joint block, and how: computed again on the way back, compiled."""

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from .settings import Training


def prepare_blocks(module: Any, training: Training) -> None:
    """Checkpoint and compile each block of a transformer where the settings say so.

    A block that is checkpointed keeps its input alone, and is computed a second time for its gradients:
    a third more time, and the memory of one block in place of all. The numbers are the same.

    Args:
        module: an MM-DiT or a ControlNet.
        training: its `checkpoint_blocks` and `compile`.
    """
    blocks = module.joint_blocks if hasattr(module, "joint_blocks") else module.transformer_blocks
    for block in blocks:
        assert isinstance(block, nn.Module)
        if training.checkpoint_blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if training.compile:
            block.compile(dynamic=False)
