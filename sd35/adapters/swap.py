"""The one seam where a module is put in another's place, and taken back.

A path is that of `named_modules`, which is the official checkpoint's key without the parameter's name:

    swap = Swap(pipe.mmdit, {"joint_blocks.0.x_block.attn.qkv": lambda base: WithUpdate(base, down, up)})
    ...
    swap.undo()

Several may lie on one another at one path; they come off in the reverse order. What was there is the very
object of before, so the base is what it was to the last bit.
"""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from torch import nn

from ..errors import SettingsError

Make = Callable[[nn.Module], nn.Module]
"""What takes the place of a module, made from that module."""


class Swap:
    """Modules that stand in the place of others until `undo`; also for a `with` block."""

    def __init__(self, root: nn.Module, makers: Mapping[str, Make]) -> None:
        """Put modules in place, all or none.

        Args:
            root: the MM-DiT, an encoder or an autoencoder.
            makers: by path, what makes a module from the one that stands there.

        Raises:
            SettingsError: there is no module at a path; or two paths lie within each other, so that one
                would take the other away.
        """
        known = dict(root.named_modules())
        if missing := sorted(path for path in makers if path not in known or not path):
            raise SettingsError(f"there is no module {', '.join(missing)} in {type(root).__name__}")
        for path in makers:
            if inner := [other for other in makers if other.startswith(f"{path}.")]:
                raise SettingsError(f"{inner[0]} lies within {path}: put one of them in place at a time")
        self.root = root
        self.before: Mapping[str, nn.Module] = {path: known[path] for path in makers}
        self.after: Mapping[str, nn.Module] = {path: make(known[path]) for path, make in makers.items()}
        self.is_in_place = True
        for path, module in self.after.items():
            root.set_submodule(path, module)

    def undo(self) -> None:
        """Put back what stood there before; a second call does nothing.

        Raises:
            SettingsError: something else was put on top since: it has to come off first.
        """
        if not self.is_in_place:
            return
        now = {path: self.root.get_submodule(path) for path in self.after}
        if covered := [path for path, module in now.items() if module is not self.after[path]]:
            raise SettingsError(
                f"at {covered[0]} another module was put in place later ({type(now[covered[0]]).__name__}): "
                "take that back first"
            )
        for path, module in self.before.items():
            self.root.set_submodule(path, module)
        self.is_in_place = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()
