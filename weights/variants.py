"""Which model a part is, told by its sizes: a released one, or the one that comes with this project."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .component import Component

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "mmdit": ("dim", "depth", "qk_norm", "dual_blocks", "pos_embed_size"),
    "vae": ("channels", "num_res_blocks", "latent_channels"),
    "clip_l": ("dim", "depth", "activation"),
    "clip_g": ("dim", "depth", "activation"),
    "t5": ("dim", "depth", "num_heads"),
    "controlnet": ("dim", "depth"),
}
"""The fields of each module's config that tell released models apart."""

RELEASED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "mmdit": {
        "sd3-medium": (1536, 24, False, (), 192),
        "sd3.5-medium": (1536, 24, True, tuple(range(13)), 384),
        "sd3.5-large": (2432, 38, True, (), 192),
    },
    "vae": {"sd3": ((128, 256, 512, 512), 2, 16)},
    "clip_l": {"clip-l": (768, 12, "quick_gelu")},
    "clip_g": {"clip-g": (1280, 32, "gelu")},
    "t5": {"t5-xxl": (4096, 24, 64)},
    "controlnet": {"sd3.5-large-controlnet": (2432, 19)},
}
"""Their values in the released models."""

TINY_SIZES = (192, 6, True, (0, 1), 32)
"""Those of the embedded model's transformer, and of what is trained from it."""


def describe(component: Component, module: nn.Module) -> tuple[str, str]:
    """Name the model that a part is of, and say how that was decided.

    SD3.5-large and -large-turbo have the same keys, shapes and dtypes: only a name tells, the
    file's or the `modelspec.title` in its header.

    Args:
        component: the part.
        module: built for it; its `config` has the sizes.

    Returns:
        The variant, or "unknown", and the sizes or names it was decided by.
    """
    fields = _FIELDS[component.part]
    sizes = tuple(getattr(module.config, name) for name in fields)
    decided = ", ".join(f"{name} {_short(size)}" for name, size in zip(fields, sizes, strict=True))
    if component.decided:
        decided = f"{component.decided}; {decided}"
    for variant, released in RELEASED[component.part].items():
        if sizes == released and variant == "sd3.5-large":
            title = component.unit.metadata.get("modelspec.title", "")
            is_turbo = "turbo" in f"{component.where} {title}".lower()
            told = "the name says turbo" if is_turbo else "no name says turbo, which has the same sizes"
            return f"{variant}{'-turbo' * is_turbo}", f"{decided}; {told}"
        if sizes == released:
            return variant, decided
    if component.part == "mmdit" and sizes == TINY_SIZES:
        return "tiny", f"{decided}: as the embedded model"
    return "unknown", f"{decided}: of no released model"


def _short(value: Any) -> str:
    """A size in few characters; a run of layers by its ends."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple) and len(value) > 4 and value == tuple(range(value[0], value[-1] + 1)):
        return f"{value[0]}-{value[-1]}"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return str(value)
