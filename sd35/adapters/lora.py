"""Put a LoRA on a model, change its strength, take it off: `add_lora`, `set_lora`, `remove_lora`."""

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mmdit import MMDiT
from textenc import CLIP, T5
from weights.adapters import Adapter, read_adapter
from weights.load import Loader

from ..errors import SettingsError
from ..loras import Lora
from .change import Change, Changes, Layer
from .layer import Adapted, Kept, adapted, merged, origin
from .report import LoraReport, LoraRow
from .swap import Swap


def add_lora(
    target: Any, source: str | Path, scale: float = 1.0, name: str | None = None, merge: bool = False
) -> LoraReport:
    """Put a LoRA, or one of its kin, on a pipeline or on one model of it.

    The big weights stay as they are and the small matrices stand beside them, so this works on weights in
    bfloat16, fp8, int8 and GGUF alike; several LoRAs add up. With `merge` they are folded in, which costs
    nothing per step and keeps the old weights in memory. Either way `remove_lora` gives the model back to
    the last bit. Only the small matrices can be trained (`lora_parameters`).

    Args:
        target: a pipeline, an `MMDiT`, a `CLIP` or a `T5`.
        source: a .safetensors file, a folder with one, or "owner/name[/file][@revision]" on the Hub, in the
            spelling of diffusers, PEFT, sd-scripts, ComfyUI, OneTrainer, SimpleTuner, ai-toolkit or LyCORIS.
        scale: how strong; 1 is what the file means. Negative turns the update round.
        name: to call it by; None takes the file's name.
        merge: fold it into the weights.

    Returns:
        What was changed, and by how much. A file without effect is also warned of.

    Raises:
        weights.AdapterError: the file is no LoRA of this model; nothing was changed.
        SettingsError: the name is taken or no name, or the scale is no finite number.
    """
    parts = parts_of(target)
    _check_scale(scale)
    name = _free_name(parts, source) if name is None else name
    if not re.fullmatch(r"[\w-]+", name):
        raise SettingsError(f"a LoRA's name is made of letters, digits, _ and -, got {name!r}")
    if any(one.name == name for one in loras_on(target)):
        raise SettingsError(f"there is already a LoRA {name!r}: remove it first, or give this one a name=")
    adapter = read_adapter(source, {part: shapes_of(module) for part, module in parts.items()})
    _refuse_loaders(target, adapter)
    lora = Lora(Lora.of((source, scale)).source, scale, name, adapter.digest, merge)
    rows = install(parts, adapter, lora)
    report = LoraReport(
        name,
        adapter.source,
        adapter.digest,
        adapter.dialect,
        scale,
        merge,
        sum(len(update.keys) for update in adapter.updates),
        tuple(rows),
        adapter.passed_over,
        adapter.notes,
    )
    if scale and not report.has_effect:
        warnings.warn(f"{adapter.source} is without effect: every update in it is zero", stacklevel=2)
    return report


def set_lora(target: Any, name: str, scale: float) -> None:
    """Change the strength of a LoRA that is on a pipeline or a model.

    Raises:
        SettingsError: there is none of this name, or the scale is no finite number.
    """
    _check_scale(scale)
    for module, path, layer in _layers_with(target, name):
        _changes_on(layer)[name].rescale(scale)
        _refold(module, path)


def remove_lora(target: Any, name: str) -> None:
    """Take a LoRA off, and give the weights back to the last bit.

    Raises:
        SettingsError: there is none of this name.
    """
    for module, path, layer in _layers_with(target, name):
        if isinstance(layer, Adapted) and name in layer.loras:
            del layer.loras[name]
            if not layer.loras:
                _uncover(module, path, layer)
            continue
        base: Layer = layer.base if isinstance(layer, Adapted) else layer
        del base.kept.loras[name]
        _refold(module, path)


def loras_on(target: Any) -> tuple[Lora, ...]:
    """The LoRAs that are on a pipeline or a model, and their strengths."""
    found: dict[str, Lora] = {}
    for module in parts_of(target).values():
        for layer in module.modules():
            found |= {name: own.lora for name, own in _changes_on(layer).items()}
    return tuple(found.values())


def lora_parameters(target: Any, name: str) -> dict[str, nn.Parameter]:
    """The small matrices of a LoRA that is not merged, for an optimiser: part, path and role to parameter.

    Their `requires_grad` is for the caller to set; no other parameter of the model has it.
    """
    found: dict[str, nn.Parameter] = {}
    for part, module in parts_of(target).items():
        for path, layer in module.named_modules():
            if isinstance(layer, Adapted) and name in layer.loras:
                found |= {f"{part}.{path}.{key}": p for key, p in layer.loras[name].named_parameters()}
    if not found:
        raise SettingsError(f"there is no unmerged LoRA {name!r} here; there are {_known(target)}")
    return found


def parts_of(target: Any) -> dict[str, nn.Module]:
    """Part to module: of a pipeline those that are loaded, of a module itself alone.

    Raises:
        SettingsError: it is none that a LoRA could change.
    """
    target = getattr(target, "_orig_mod", target)  # under torch.compile
    if isinstance(target, MMDiT):
        return {"mmdit": target}
    if isinstance(target, CLIP):
        return {"clip_l" if target.config.activation == "quick_gelu" else "clip_g": target}
    if isinstance(target, T5):
        return {"t5": target}
    text = getattr(target, "text", None)
    found = {"mmdit": getattr(target, "mmdit", None)}
    found |= {part: getattr(text, part, None) for part in ("clip_l", "clip_g", "t5")}
    modules = {part: getattr(module, "_orig_mod", module) for part, module in found.items()}
    modules = {part: module for part, module in modules.items() if isinstance(module, nn.Module)}
    if not modules:
        raise SettingsError(
            f"a LoRA goes on a pipeline, an MMDiT, a CLIP or a T5, not on a {type(target).__name__}"
        )
    return modules


def _refuse_loaders(target: Any, adapter: Adapter) -> None:
    """Refuse what would change a text encoder that is loaded anew for each prompt."""
    text = getattr(target, "text", None)
    for part, own in (("clip_l", "CLIP-L"), ("clip_g", "CLIP-G"), ("t5", "T5")):
        if isinstance(getattr(text, part, None), Loader) and any(
            own in why for why in adapter.passed_over.values()
        ):
            raise SettingsError(
                f"{adapter.source} changes the text encoder {own}, which this pipeline loads anew for each "
                "prompt: load it without one_by_one, and with memory off"
            )


def install(parts: Mapping[str, nn.Module], adapter: Adapter, lora: Lora) -> list[LoraRow]:
    """Put every update in place; all of them were checked before."""
    by_path: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for update in adapter.updates:
        by_path[update.part, update.path].append(Change(update, lora.scale))
    rows = []
    for (part, path), changes in by_path.items():
        module = parts[part]
        layer: Layer = module.get_submodule(path)
        base = origin(layer.base if isinstance(layer, Adapted) else layer)
        own = Changes(changes, lora).to(base.weight.device)
        for change in changes:
            update = change.update
            norm = change.norm(base)
            rows.append(LoraRow(part, path, update.rows, update.label, update.rank, update.alpha, norm))
        if lora.merged:
            _fold(module, path, {lora.name: own})
        else:
            if not isinstance(layer, Adapted):
                layer = adapted(layer).train(layer.training)
                _put(module, path, layer)
            layer.loras[lora.name] = own
    return rows


def _fold(module: nn.Module, path: str, more: Mapping[str, Changes]) -> None:
    """Make the merged layer of a path anew, with what is folded in already and `more`."""
    layer = module.get_submodule(path)
    base: Layer = layer.base if isinstance(layer, Adapted) else layer
    kept: Kept = getattr(base, "kept", None) or Kept(base)
    loras = kept.loras | dict(more)
    device = base.weight.device
    if kept.base.weight.device != device:  # the model was moved after merging, and what was kept was not
        kept.base.to(device)
    new = merged(kept.base, loras, next(module.parameters()).dtype) if loras else kept.base
    if isinstance(layer, Adapted):
        layer.base = new
        return
    if hasattr(layer, "kept"):
        _take_back(layer)
    if loras:
        _put(module, path, new)


def _put(module: nn.Module, path: str, layer: Layer) -> None:
    """Put a layer in place; it remembers how it is taken back."""
    layer.swap = Swap(module, {path: lambda _: layer})


def _uncover(module: nn.Module, path: str, layer: Adapted) -> None:
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


def _refold(module: nn.Module, path: str) -> None:
    """Make a merged layer anew after what is in it was changed; nothing where none is merged."""
    layer = module.get_submodule(path)
    base = layer.base if isinstance(layer, Adapted) else layer
    if hasattr(base, "kept"):
        _fold(module, path, {})


def _changes_on(layer: nn.Module) -> dict[str, Changes]:
    """Name to what each LoRA does to a layer, beside it or merged into it."""
    kept: Kept | None = getattr(layer, "kept", None)
    if kept is not None:
        return kept.loras
    if isinstance(layer, Adapted):
        return _changes_on(layer.base) | {key: cast(Changes, own) for key, own in layer.loras.items()}
    return {}


def _layers_with(target: Any, name: str) -> list[tuple[nn.Module, str, nn.Module]]:
    """Every layer that a LoRA is on: the model, the path and the module that stands there."""
    found, inside = [], set()
    for module in parts_of(target).values():
        for path, layer in module.named_modules():
            if layer not in inside and name in _changes_on(layer):
                found.append((module, path, layer))
            if isinstance(layer, Adapted):
                inside.add(layer.base)
    if not found:
        raise SettingsError(f"there is no LoRA {name!r} here; there are {_known(target)}")
    return found


def _known(target: Any) -> str:
    """The names in a row."""
    return ", ".join(one.name for one in loras_on(target)) or "none"


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Official key to shape, whatever stands in the layers' places."""
    config = cast(Any, module).config
    with torch.device("meta"):
        fresh = cast(Any, type(module))(config)
    return {key: tuple(tensor.shape) for key, tensor in fresh.state_dict().items()}


def _free_name(parts: Mapping[str, nn.Module], source: str | Path) -> str:
    """A name made of a source's: the file's, or the folder's where the file is called as every one is."""
    path = Path(str(source).split("@")[0])
    return re.sub(r"[^\w-]", "_", path.stem if path.suffix == ".safetensors" else path.name) or "lora"


def _check_scale(scale: float) -> None:
    """Refuse a scale that is no finite number."""
    if not isinstance(scale, int | float) or not torch.tensor(float(scale)).isfinite():
        raise SettingsError(f"a LoRA's scale is a finite number, got {scale!r}")
