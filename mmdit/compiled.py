"""Blocks through `torch.compile`, one at a time."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from .blocks import JointBlock
from .model import MMDiT


class CompiledForward:
    """In the place of a block's `forward`: the compiled one, or the written one where a part is watched."""

    def __init__(self, block: JointBlock, compiled: Callable[..., Any]) -> None:
        self.block, self.compiled = block, compiled

    def __call__(self, *args: Any) -> Any:
        """As `JointBlock.forward`."""
        run = JointBlock.forward if is_watched(self.block) else self.compiled
        return run(self.block, *args)


def compile_blocks(model: MMDiT) -> None:
    """Compile each joint block, in place; keys, weights and results' shapes stay.

    By block, so that a few graphs serve them all: one for each kind of block (plain, dual, last) that the
    model has, a few seconds each at the first call. Token counts are left open, so that another prompt's
    length or another picture's size does not compile again; another module in a layer's place does.

    While a hook is on a part of a block, that block runs as it is written, since what is compiled has no
    parts.
    """
    compiled = torch.compile(JointBlock.forward, dynamic=True)
    for block in model.joint_blocks:
        block.forward = CompiledForward(cast(JointBlock, block), compiled)


def eager_blocks(model: MMDiT) -> None:
    """Undo `compile_blocks`; nothing happens to a model that is not compiled."""
    for block in model.joint_blocks:
        block.__dict__.pop("forward", None)


def is_compiled(model: MMDiT) -> bool:
    """Whether the blocks of a model are compiled."""
    return any("forward" in block.__dict__ for block in model.joint_blocks)


def is_watched(module: nn.Module, within: str = "") -> bool:
    """Whether there is a hook on a part of a module, among the parts whose path contains `within`."""
    return any(
        part._forward_hooks or part._forward_pre_hooks
        for path, part in module.named_modules()
        if path and within in path
    )
