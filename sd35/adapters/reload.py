"""LoRAs on text encoders that are loaded anew for each prompt: put on each time, by their order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from weights.adapters import Update
from weights.build import build_component
from weights.load import Loader

from ..loras import Lora
from .install import install, rows_of
from .report import LoraRow

ENCODERS = ("clip_l", "clip_g", "t5")


@dataclass(frozen=True)
class Reinstall:
    """Puts one LoRA on one encoder, whenever it was loaded."""

    part: str
    updates: tuple[Update, ...]
    lora: Lora

    def __call__(self, module: nn.Module) -> None:
        """Change a module that was just loaded."""
        install({self.part: module}, self.updates, self.lora)


def loaders_of(target: Any) -> dict[str, Loader]:
    """Part to what loads it, of the encoders that a pipeline loads anew for each prompt."""
    text = getattr(target, "text", None)
    found = {part: getattr(text, part, None) for part in ENCODERS}
    return {part: loader for part, loader in found.items() if isinstance(loader, Loader)}


def add_to_loaders(target: Any, updates: tuple[Update, ...], lora: Lora) -> list[LoraRow]:
    """Have a LoRA put on the encoders that are loaded anew, and tell what it changes in them.

    Nothing is loaded here, but for a DoRA, whose effect depends on the weights.
    """
    rows, loaders = [], loaders_of(target)
    for part, loader in loaders.items():
        own = tuple(update for update in updates if update.part == part)
        if own:
            looks = any(update.axis is not None for update in own)
            module = loader() if looks else build_component(loader.component)
            rows += rows_of({part: module}, own, lora)
            changes = (*loader.changes, Reinstall(part, own, lora))
            _put_loaders(target, {part: replace(loader, changes=changes)})
    return rows


def loras_on_loaders(target: Any) -> dict[str, Lora]:
    """Name to LoRA, of those that are put on encoders when they are loaded."""
    return {
        change.lora.name: change.lora
        for loader in loaders_of(target).values()
        for change in loader.changes
        if isinstance(change, Reinstall)
    }


def change_on_loaders(target: Any, name: str, change: Callable[[Reinstall], Reinstall | None]) -> None:
    """Change a LoRA of this name on encoders that are loaded anew, or drop it where `change` gives None."""
    changed = {}
    for part, loader in loaders_of(target).items():
        new = [
            change(one) if isinstance(one, Reinstall) and one.lora.name == name else one
            for one in loader.changes
        ]
        changed[part] = replace(loader, changes=tuple(one for one in new if one is not None))
    if name in loras_on_loaders(target):
        _put_loaders(target, changed)


def _put_loaders(target: Any, loaders: Mapping[str, Loader]) -> None:
    """Give a pipeline other functions that load its encoders."""
    target.text = replace(target.text, **loaders)
