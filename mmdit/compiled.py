"""Blocks through `torch.compile`, one at a time."""

import torch

from .model import MMDiT


def compile_blocks(model: MMDiT) -> None:
    """Compile each joint block, in place; keys, weights and results' shapes stay.

    By block, so that a few graphs serve them all: one for each kind of block (plain, dual, last) that the
    model has, a few seconds each at the first call. Token counts are left open, so that another prompt's
    length or another picture's size does not compile again.

    A hook set on a part of a block after its first call is not seen by what is compiled: use
    `eager_blocks` before looking inside. Hooks on the block itself work.
    """
    for block in model.joint_blocks:
        block.forward = torch.compile(block.forward, dynamic=True)


def eager_blocks(model: MMDiT) -> None:
    """Undo `compile_blocks`; nothing happens to a model that is not compiled."""
    for block in model.joint_blocks:
        block.__dict__.pop("forward", None)
