"""What the parts of a model take, told by the headers of its files."""

from collections.abc import Mapping
from math import prod
from typing import TypeAlias, cast

import torch

from mmdit import MMDiT
from textenc import T5
from weights.component import Component

from .adapters.fp8 import fp8_paths
from .found import Found, dtypes_of
from .memory import Needs

Dtypes: TypeAlias = torch.dtype | Mapping[str, torch.dtype | None] | None


def needs_of(
    found: Found, device: torch.device, dtype: Dtypes, *, unpack: bool = False, fp8: bool = False
) -> Needs:
    """What the parts of a model that was found take, by their headers; other arguments as in `load`."""
    dtypes, weights = dtypes_of(device, dtype), dict[str, float]()
    for part, component in found.components.items():
        weights[part] = sum(_bytes(component, dtypes[part], unpack=unpack).values())
    mmdit, vae = found.mmdit, found.vae
    whole = _bytes(found.components["mmdit"], dtypes["mmdit"], unpack=unpack)
    if fp8:
        paths = {f"{path}.weight" for path in fp8_paths(cast(MMDiT, found.modules["mmdit"]))}
        shapes = found.components["mmdit"].shapes()
        whole |= {key: float(prod(shapes[key])) for key in paths}
        weights["mmdit"] = sum(whole.values())
    each = _blocks(whole)
    streamed, t5 = 0.0, found.modules.get("t5")
    if isinstance(t5, T5):
        table = t5.shared.weight.numel() / sum(one.numel() for one in t5.parameters())
        streamed = weights["t5"] * (table + (1 - table) / t5.config.depth)
    return Needs(
        weights=weights,
        mmdit=mmdit,
        vae=vae,
        itemsize=(dtypes["mmdit"] or found.components["mmdit"].dtype).itemsize,
        pixels=found.size.width * found.size.height,
        blocks=sum(each.values()),
        block=max(each.values()),
        streamed=streamed,
    )


def _bytes(component: Component, dtype: torch.dtype | None, *, unpack: bool) -> dict[str, float]:
    """What each tensor of a part takes, by its key."""
    if component.in_few_bits and not unpack:
        infos = component.unit.infos
        return {
            key: float(sum(infos[name].nbytes for name in recipe.sources))
            for key, recipe in component.recipes.items()
        }
    itemsize = (dtype or component.dtype).itemsize
    return {key: float(itemsize * prod(shape)) for key, shape in component.shapes().items()}


def _blocks(whole: Mapping[str, float]) -> dict[str, float]:
    """What each joint block of a transformer takes, by its number."""
    each = dict[str, float]()
    for key, size in whole.items():
        if key.startswith("joint_blocks."):
            number = key.split(".")[1]
            each[number] = each.get(number, 0.0) + size
    return each
