"""From the updates of a LoRA to the tensors of a file, in the spelling of other programs."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import AdapterError
from ..keys import Recipe, to_theirs
from .names import DIFFUSERS
from .scales import METADATA
from .value import Update

Spelling = Literal["diffusers", "kohya"]
"""diffusers: PEFT's names, q, k and v apart; ComfyUI reads it too, but no DoRA. kohya: sd-scripts' names on
the official layers, qkv in one; ComfyUI and the web interfaces read it, and a DoRA in it."""

_PREFIX = {
    "diffusers": {"mmdit": "transformer.", "clip_l": "text_encoder.", "clip_g": "text_encoder_2."},
    "kohya": {"mmdit": "lora_unet_", "clip_l": "lora_te1_", "clip_g": "lora_te2_"},
}


def spell_adapter(
    updates: Sequence[Update], modules: Sequence[str], spelling: Spelling = "diffusers"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Spell LoRA and DoRA updates as a file has them; `read_adapter` reads them back.

    Args:
        updates: of the kind "lora", with rows as in the model.
        modules: every module path of the MM-DiT, whose last block has an order of its own.
        spelling: whose.

    Returns:
        The tensors by key, and the metadata for the header.

    Raises:
        AdapterError: an unknown spelling, or an update that the spelling has no words for.
    """
    if spelling not in get_args(Spelling):
        raise AdapterError(f"spelling must be one of {', '.join(get_args(Spelling))}; got {spelling!r}")
    if spelling == "kohya":
        return _kohya(updates), {"ss_network_module": "networks.lora_sd3"}
    recipes, _ = to_theirs(modules, DIFFUSERS)
    tensors: dict[str, Tensor] = {}
    targets: dict[str, list[str]] = defaultdict(list)
    for update in updates:
        name, swap = _diffusers_name(update, recipes)
        prefix = _PREFIX[spelling][update.part]
        targets[prefix].append(name)
        turned = update.swap != swap
        tensors[f"{prefix}{name}.lora_A.weight"] = update.tensors["down"]
        # Alpha over rank goes into the matrix: ComfyUI does not read alpha from the header.
        tensors[f"{prefix}{name}.lora_B.weight"] = update.scale * _turned(update.tensors["up"], turned)
        if update.axis is not None:
            magnitude = _turned(update.tensors["magnitude"].flatten(), turned)
            tensors[f"{prefix}{name}.lora_magnitude_vector"] = magnitude
    return tensors, {METADATA: json.dumps(_peft_config(updates, targets), indent=2, sort_keys=True)}


def _diffusers_name(update: Update, recipes: Mapping[str, Recipe]) -> tuple[str, bool]:
    """What diffusers calls the module, and whether it has the two halves of its rows the other way round."""
    if update.part != "mmdit":
        return update.path, False
    recipe = recipes.get(update.path)
    if recipe is None:
        raise AdapterError(f"diffusers has no name for {update.path}: leave it out of the targets")
    if len(recipe.sources) == 1:
        return recipe.sources[0], recipe.change == "swap"
    height = update.rows[1] - update.rows[0]
    if len(update.tensors["up"]) != height or update.rows[0] % height:
        raise AdapterError(f"diffusers has q, k and v of {update.path} apart, and this update joins them")
    return recipe.sources[update.rows[0] // height], False


def _turned(rows: Tensor, swap: bool) -> Tensor:
    return torch.cat(rows.chunk(2)[::-1]) if swap else rows


def _peft_config(updates: Sequence[Update], targets: Mapping[str, list[str]]) -> dict[str, object]:
    """What diffusers stores in the header: PEFT's configuration, each name with the part's prefix."""
    first = updates[0]
    if any((one.rank, one.axis) != (first.rank, first.axis) for one in updates):
        raise AdapterError("updates of several ranks, or of LoRA and DoRA, are not written into one file")
    config: dict[str, object] = {
        "r": first.rank,
        "lora_alpha": first.rank,
        "lora_bias": False,
        "use_dora": first.axis is not None,
    }
    return {
        f"{prefix}{key}": value
        for prefix, names in targets.items()
        for key, value in (config | {"target_modules": sorted(names)}).items()
    }


def _kohya(updates: Sequence[Update]) -> dict[str, Tensor]:
    """One LoRA a layer: those of q, k and v side by side, so that their product is all three."""
    layers: dict[tuple[str, str], list[Update]] = defaultdict(list)
    for update in updates:
        layers[update.part, update.path].append(update)
    tensors = {}
    for (part, path), own in layers.items():
        name = f"{_PREFIX['kohya'][part]}{'_'.join(path.split('.'))}"
        own.sort(key=lambda update: update.rows)
        down = torch.cat([update.tensors["down"].flatten(1) for update in own])
        up = torch.block_diag(*(_turned(update.tensors["up"].flatten(1), update.swap) for update in own))
        if any(update.rank != own[0].rank or update.scale != own[0].scale for update in own):
            raise AdapterError(f"updates of {path} have several ranks or scales")
        if len({tuple(update.rows) for update in own}) != len(own) or _gaps(own):
            raise AdapterError(f"sd-scripts has q, k and v of {path} in one: train all three")
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up.to(down.dtype)
        tensors[f"{name}.alpha"] = torch.tensor(own[0].scale * len(down))
        if own[0].axis is not None:
            tensors[f"{name}.dora_scale"] = torch.cat([one.tensors["magnitude"].flatten() for one in own])[
                :, None
            ]
    return tensors


def _gaps(own: Sequence[Update]) -> bool:
    """Whether the rows of some updates leave any of the first ones out."""
    return own[0].rows[0] != 0 or any(one.rows[1] != other.rows[0] for one, other in pairwise(own))
