"""The taps of a module: the path of each submodule whose output is a tensor, or a tuple of tensors.

A tap is named by the path of its module, which is the checkpoint's key without `.weight`. Where a module
gives several tensors, each has a name of its own behind the path, as in `joint_blocks.3.context`.
The output of the very module that is watched is called `output`, or by the names of its parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmdit.blocks import AdaLN, JointBlock
from textenc import CLIP, CLIPOutput
from textenc.clip import TextModel

MODULATION = ("shift", "scale", "gate", "shift_mlp", "scale_mlp", "gate_mlp", "shift2", "scale2", "gate2")
"""What AdaLN gives, in the checkpoint's order: the first 2 for a stream that ends, 6, or 9 in dual blocks."""


@dataclass(frozen=True)
class Tap:
    """One tensor that a model computes: the output of a module, or a part of it."""

    name: str
    module: nn.Module
    part: int | None  # index into the tuple that the module returns; None where it returns the tensor itself


def find_taps(root: nn.Module) -> dict[str, Tap]:
    """Every tap of a module by its name, in the order in which the modules were made.

    Containers that are never called (`nn.ModuleList`, the two streams of a block) are no taps; what is in
    them is.
    """
    return {tap.name: tap for path, module in root.named_modules() for tap in _taps_of(path, module)}


def part_of(output: Any, part: int | None) -> Tensor | None:
    """The tensor that a tap stands for; None where the module left it out."""
    return output if part is None else output[part]


def with_part(output: Any, part: int | None, value: Tensor) -> Any:
    """A module's output with one tensor replaced."""
    if part is None:
        return value
    changed = [*output[:part], value, *output[part + 1 :]]
    return type(output)(*changed) if hasattr(output, "_fields") else tuple(changed)


def _taps_of(path: str, module: nn.Module) -> Iterator[Tap]:
    if type(module).forward is nn.Module.forward:  # has no forward of its own
        return
    parts = _parts(module)
    if not parts:
        yield Tap(path or "output", module, None)
    for index, part in enumerate(parts):
        yield Tap(f"{path}.{part}" if path else part, module, index)


def _parts(module: nn.Module) -> tuple[str, ...]:
    """The names of the tensors that a module returns in a tuple; none where it returns one tensor."""
    if isinstance(module, JointBlock):
        return ("x",) if module.last else ("x", "context")
    if isinstance(module, AdaLN):
        return MODULATION[: module.n]
    if isinstance(module, TextModel):
        return CLIPOutput._fields[:2]
    return CLIPOutput._fields if isinstance(module, CLIP) else ()
