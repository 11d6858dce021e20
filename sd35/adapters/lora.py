"""Put a LoRA on a model, change its strength, take it off: `add_lora`, `set_lora`, `remove_lora`."""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mmdit import MMDiT, forget_graphs
from textenc import CLIP, T5
from weights.adapters import read_adapter
from weights.load_into import Uninitialised

from ..errors import SettingsError
from ..loras import Lora
from .install import changes_on, install, refold, rows_of, uncover
from .layer import Adapted, base_of
from .reload import ENCODERS, add_to_loaders, change_on_loaders, loaders_of, loras_on_loaders
from .report import LoraReport


def add_lora(
    target: Any, source: str | Path, scale: float = 1.0, name: str | None = None, merge: bool = False
) -> LoraReport:
    """Put a LoRA, or one of its relatives, on a pipeline or on one model of it.

    The big weights stay as they are and the small matrices stand beside them, so this works on weights in
    bfloat16, fp8, int8 and GGUF alike; several LoRAs add up. With `merge` they are folded in, which costs
    nothing per step and keeps the old weights in memory; a layer in few bits is then one in the model's
    dtype, and no product in 8-bit floats. Either way `remove_lora` gives the model back to
    the last bit. Only the small matrices can be trained (`lora_parameters`). On a text encoder that is loaded
    anew for each prompt (`one_by_one`) it is put each time.

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
    name = _name_of(source) if name is None else name
    if not re.fullmatch(r"[\w-]+", name):
        raise SettingsError(f"a LoRA's name is made of letters, digits, _ and -, got {name!r}")
    if any(one.name == name for one in loras_on(target)):
        raise SettingsError(f"there is already a LoRA {name!r}: remove it first, or give this one a name=")
    shapes = {part: shapes_of(module) for part, module in parts.items()}
    shapes |= {part: loader.component.shapes() for part, loader in loaders_of(target).items()}
    adapter = read_adapter(source, shapes)
    lora = Lora(Lora.of((source, scale)).source, scale, name, adapter.digest, merge)
    there = [update for update in adapter.updates if update.part in parts]
    rows = [*rows_of(parts, there, lora), *add_to_loaders(target, adapter.updates, lora)]
    install(parts, there, lora)
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
    _check_name(target, name)
    change_on_loaders(target, name, lambda one: replace(one, lora=replace(one.lora, scale=scale)))
    for module, path, layer in _layers_with(target, name):
        changes_on(layer)[name].rescale(scale)
        refold(module, path)
    for module in parts_of(target).values():
        forget_graphs(module)


def remove_lora(target: Any, name: str) -> None:
    """Take a LoRA off, and give the weights back to the last bit.

    Raises:
        SettingsError: there is none of this name.
    """
    _check_name(target, name)
    change_on_loaders(target, name, lambda _: None)
    for module, path, layer in _layers_with(target, name):
        if isinstance(layer, Adapted) and name in layer.loras:
            del layer.loras[name]
            if not layer.loras:
                uncover(module, path, layer)
            continue
        del base_of(layer).kept.loras[name]
        refold(module, path)


def loras_on(target: Any) -> tuple[Lora, ...]:
    """The LoRAs that are on a pipeline or a model, and their strengths."""
    found: dict[str, Lora] = {}
    for module in parts_of(target).values():
        for layer in module.modules():
            found |= {name: own.lora for name, own in changes_on(layer).items()}
    return tuple({**found, **loras_on_loaders(target)}.values())


def lora_parameters(target: Any, name: str) -> dict[str, nn.Parameter]:
    """The small matrices of a LoRA that is not merged, for an optimiser: part, path and role to parameter.

    Their `requires_grad` is for the caller to set; no other parameter of the model has it.
    """
    if name in loras_on_loaders(target):
        raise SettingsError(
            f"the LoRA {name!r} is on a text encoder that is loaded anew for each prompt, where nothing is "
            "trained: load the pipeline without one_by_one, and with memory off"
        )
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
    found |= {part: getattr(text, part, None) for part in ENCODERS}
    modules = {part: getattr(module, "_orig_mod", module) for part, module in found.items()}
    modules = {part: module for part, module in modules.items() if isinstance(module, nn.Module)}
    if not modules:
        raise SettingsError(
            f"a LoRA goes on a pipeline, an MMDiT, a CLIP or a T5, not on a {type(target).__name__}"
        )
    return modules


def _layers_with(target: Any, name: str) -> list[tuple[nn.Module, str, nn.Module]]:
    """Every layer that a LoRA is on: the model, the path and the module that stands there."""
    found, inside = [], set()
    for module in parts_of(target).values():
        for path, layer in module.named_modules():
            if layer not in inside and name in changes_on(layer):
                found.append((module, path, layer))
            if isinstance(layer, Adapted):
                inside.add(layer.base)
    return found


def _check_name(target: Any, name: str) -> None:
    """Refuse a name that no LoRA has."""
    if all(one.name != name for one in loras_on(target)):
        raise SettingsError(f"there is no LoRA {name!r} here; there are {_known(target)}")


def _known(target: Any) -> str:
    """The names in a row."""
    return ", ".join(one.name for one in loras_on(target)) or "none"


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Official key to shape, whatever stands in the layers' places."""
    config = cast(Any, module).config
    with torch.device("meta"), Uninitialised():
        fresh = cast(Any, type(module))(config)
    return {key: tuple(tensor.shape) for key, tensor in fresh.state_dict().items()}


def _name_of(source: str | Path) -> str:
    """A name made of a source's: the file's, or the folder's where the file is called as every one is."""
    path = Path(str(source).split("@")[0])
    return re.sub(r"[^\w-]", "_", path.stem if path.suffix == ".safetensors" else path.name) or "lora"


def _check_scale(scale: float) -> None:
    """Refuse a scale that is no finite number."""
    if not isinstance(scale, int | float) or not torch.tensor(float(scale)).isfinite():
        raise SettingsError(f"a LoRA's scale is a finite number, got {scale!r}")
