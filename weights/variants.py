"""Which released model a part is, told by its sizes."""

from typing import Any

from torch import nn

from .component import Component

_SIZES: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "mmdit": (
        (
            "sd3-medium",
            {"dim": 1536, "depth": 24, "qk_norm": False, "dual_blocks": (), "pos_embed_size": 192},
        ),
        (
            "sd3.5-medium",
            {
                "dim": 1536,
                "depth": 24,
                "qk_norm": True,
                "dual_blocks": tuple(range(13)),
                "pos_embed_size": 384,
            },
        ),
        (
            "sd3.5-large",
            {"dim": 2432, "depth": 38, "qk_norm": True, "dual_blocks": (), "pos_embed_size": 192},
        ),
    ),
    "vae": (("sd3", {"channels": (128, 256, 512, 512), "num_res_blocks": 2, "latent_channels": 16}),),
    "clip_l": (("clip-l", {"dim": 768, "depth": 12, "activation": "quick_gelu"}),),
    "clip_g": (("clip-g", {"dim": 1280, "depth": 32, "activation": "gelu"}),),
    "t5": (("t5-xxl", {"dim": 4096, "depth": 24, "num_heads": 64}),),
    "controlnet": (("sd3.5-large-controlnet", {"dim": 2432, "depth": 19}),),
}
"""The sizes that tell released models apart, as fields of the module's config."""


def describe(component: Component, module: nn.Module) -> tuple[str, str]:
    """Name the released model that a part is of, and say how that was decided.

    SD3.5-large and -large-turbo have the same keys, shapes and dtypes: only the file's name tells.

    Args:
        component: the part.
        module: built for it; its `config` has the sizes.

    Returns:
        The variant, or "unknown", and the sizes or names it was decided by.
    """
    config = module.config
    known = _SIZES[component.part]
    fields = {name: getattr(config, name) for name in known[0][1]}
    decided = ", ".join(f"{name} {_short(value)}" for name, value in fields.items())
    if component.decided:
        decided = f"{component.decided}; {decided}"
    for variant, sizes in known:
        if fields == sizes:
            if variant == "sd3.5-large":
                is_turbo = "turbo" in component.where.lower()
                told = "the name says turbo" if is_turbo else "or its turbo: the name does not say so"
                return f"{variant}{'-turbo' * is_turbo}", f"{decided}; {told}"
            return variant, decided
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
