"""The taps of a module: the path of each submodule whose output is a tensor, or a tuple of tensors.

A tap is named by the path of its module, which is the checkpoint's key without `.weight`. Where a module
gives several tensors, each has a name of its own behind the path, as in `joint_blocks.3.context`.
The output of the very module that is watched is called `output`, or by the names of its parts. An attention
has its logits too, as in `joint_blocks.3.attention.logits`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .logits import LOGITS, has_logits
from .outputs import Meaning, meaning_of, parts_of


@dataclass(frozen=True)
class Tap:
    """One tensor that a model computes: the output of a module, or a part of it."""

    name: str
    module: nn.Module
    part: int | str | None
    """Index into the tuple that the module returns; `LOGITS`; None where it returns the tensor itself."""
    meaning: Meaning | None = None
    """What it holds; None for modules that are not ours."""

    @property
    def dims(self) -> tuple[str, ...] | None:
        """The names of its dimensions; None where they are not known."""
        return None if self.meaning is None else self.meaning.dims


def find_taps(root: nn.Module) -> dict[str, Tap]:
    """Every tap of a module by its name, in the order in which the modules were made.

    Containers that are never called (`nn.ModuleList`, the two streams of a block) are no taps; what is in
    them is.
    """
    return {tap.name: tap for path, module in root.named_modules() for tap in _taps_of(root, path, module)}


def _taps_of(root: nn.Module, path: str, module: nn.Module) -> Iterator[Tap]:
    if type(module).forward is nn.Module.forward:  # has no forward of its own
        return
    if has_logits(module):
        name = f"{path}.{LOGITS}" if path else LOGITS
        yield Tap(name, module, LOGITS, meaning_of(root, name))
    parts = parts_of(module)
    if not parts:
        name = path or "output"
        yield Tap(name, module, None, meaning_of(root, name))
    for index, part in enumerate(parts):
        yield Tap(f"{path}.{part.name}" if path else part.name, module, index, part.meaning)
