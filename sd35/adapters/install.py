"""Where the updates of a LoRA stand in a model: put in place, folded in, and taken back, layer by layer."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import cast

import torch
from torch import nn

from weights.adapters import Update

from ..loras import Lora
from .change import Change, Changes, Layer
from .layer import Adapted, Kept, adapted, base_of, merged, origin
from .report import LoraRow
from .swap import Swap


def rows_of(parts: Mapping[str, nn.Module], updates: Iterable[Update], lora: Lora) -> Iterator[LoraRow]:
    """What each update changes, and by how much.

    Args:
        parts: part to its module. It may be on the meta device, but not for DoRA, which looks at the weights.
        updates: all checked before.
        lora: for its strength.
    """
    for update in updates:
        layer: Layer = parts[update.part].get_submodule(update.path)
        base = origin(base_of(layer))
        change, device = Change(update, lora.scale), _device_of(base)
        norm = (change if device.type == "meta" else change.to(device)).norm(base)
        yield LoraRow(update.part, update.path, update.rows, update.label, update.rank, update.alpha, norm)


def install(parts: Mapping[str, nn.Module], updates: Iterable[Update], lora: Lora) -> None:
    """Put every update in place; all of them were checked before."""
    by_path: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for update in updates:
        by_path[update.part, update.path].append(Change(update, lora.scale))
    for (part, path), changes in by_path.items():
        module = parts[part]
        layer: Layer = module.get_submodule(path)
        base = origin(base_of(layer))
        own = Changes(changes, lora).to(_device_of(base))
        if lora.merged:
            _fold(module, path, {lora.name: own})
        else:
            if not isinstance(layer, Adapted):
                layer = adapted(layer).train(layer.training)
                _put(module, path, layer)
            layer.loras[lora.name] = own


def _fold(module: nn.Module, path: str, more: Mapping[str, Changes]) -> None:
    """Make the merged layer of a path anew, with what is folded in already and `more`."""
    layer = module.get_submodule(path)
    base = base_of(layer)
    kept: Kept = getattr(base, "kept", None) or Kept(base)
    loras = kept.loras | dict(more)
    device = _device_of(base)
    if _device_of(kept.base) != device:  # the model was moved after merging, and what was kept was not
        kept.base.to(device)
    new = merged(kept.base, loras, next(module.parameters()).dtype) if loras else kept.base
    if isinstance(layer, Adapted):
        layer.base = new
        return
    if hasattr(layer, "kept"):
        _take_back(layer)
    if loras:
        _put(module, path, new)


def _device_of(layer: Layer) -> torch.device:
    """Where a layer is; a weight in few bits is not unpacked to know."""
    return next(chain(layer.parameters(), layer.buffers())).device


def _put(module: nn.Module, path: str, layer: Layer) -> None:
    """Put a layer in place; it remembers how it is taken back."""
    layer.swap = Swap(module, {path: lambda _: layer})


def uncover(module: nn.Module, path: str, layer: Adapted) -> None:
    """Take away a layer that has no LoRA beside it any more, and leave its base, merged or not."""
    _take_back(layer)
    below, base = module.get_submodule(path), layer.base
    if below is not base:  # what is merged into the base was changed meanwhile
        if hasattr(below, "kept"):
            _take_back(below)
        if hasattr(base, "kept"):
            _put(module, path, base)


def _take_back(layer: Layer) -> None:
    """Put back what stood in a layer's place."""
    layer.swap.undo()


def refold(module: nn.Module, path: str) -> None:
    """Make a merged layer anew after what is in it was changed; nothing where none is merged."""
    layer = module.get_submodule(path)
    base = base_of(layer)
    if hasattr(base, "kept"):
        _fold(module, path, {})


def changes_on(layer: nn.Module) -> dict[str, Changes]:
    """Name to what each LoRA does to a layer, beside it or merged into it."""
    kept: Kept | None = getattr(layer, "kept", None)
    if kept is not None:
        return kept.loras
    if isinstance(layer, Adapted):
        return changes_on(layer.base) | {key: cast(Changes, own) for key, own in layer.loras.items()}
    return {}
