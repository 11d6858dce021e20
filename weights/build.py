"""From tensors, or their shapes, to the empty module that fits them.

The architecture is read off the shapes. A module is built on torch's meta device, where it costs nothing,
until it takes over the tensors of a file (`load_into.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import isclose, isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmdit import (
    ControlNet,
    ControlNetConfig,
    JointControlNet,
    JointControlNetConfig,
    MMDiT,
    MMDiTConfig,
    position_table,
)
from textenc import CLIP, T5, CLIPConfig, T5Config
from vae import VAE, VAEConfig
from vae.model import SCALE, SHIFT

from .compare import require_fit
from .component import Component, described
from .errors import FitError
from .load_into import Uninitialised
from .parts import PARTS, kind_of
from .variants import RELEASED

Tensors = Mapping[str, Tensor] | Mapping[str, Sequence[int]]


def check_fit(component: Component) -> nn.Module:
    """See, by its header alone, that a part that `resolve` found is whole.

    Returns:
        The empty module that it fits, on the meta device.

    Raises:
        FitError: it does not fit.
    """
    module = build_component(component)
    require_fit(component, module)
    return module


def build_component(component: Component) -> nn.Module:
    """Build the empty module of a component's sizes, on the meta device.

    Raises:
        FitError: the sizes cannot be told, since a tensor that decides one is missing or of another rank; or
            the part is of a kind that this project does not compute, by its keys or its config.json.
    """
    _check_kind(component)
    try:
        with torch.device("meta"), Uninitialised():
            return _MODULES[component.part](component)
    except ValueError as error:
        raise FitError(
            f"{component.where or 'this'} holds no whole {PARTS[component.part]}: {error}"
        ) from error


CONSTANTS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "mmdit": {"attention_head_dim": (64,), "qk_norm": (None, "rms_norm")},
    "controlnet": {"attention_head_dim": (64,)},
    "vae": {
        "scaling_factor": (SCALE,),
        "shift_factor": (SHIFT,),
        "norm_num_groups": (32,),
        "act_fn": ("silu",),
    },
    "clip_l": {"layer_norm_eps": (1e-5,)},
    "clip_g": {"layer_norm_eps": (1e-5,)},
    "t5": {
        "layer_norm_epsilon": (1e-6,),
        "relative_attention_max_distance": (128,),
        "feed_forward_proj": ("gated-gelu",),
    },
}
"""What no shape tells, under the names of diffusers and transformers, and the values computed with."""

AUTOENCODERS = {0.3611: "FLUX.1's", 0.18215: "Stable Diffusion 1's and 2's", 0.13025: "Stable Diffusion XL's"}
"""The scaling factors of other models' autoencoders, some of which have the same keys and shapes."""


def _check_kind(component: Component) -> None:
    """Refuse a part that would load and compute something else.

    Raises:
        FitError: its config.json contradicts a constant.
    """
    where, part = component.where or "this", PARTS[component.part]
    for name, values in CONSTANTS[component.part].items():
        told = component.config.get(name, values[0])
        if not any(_same(told, value) for value in values):
            known = f" ({AUTOENCODERS[told]})" if name == "scaling_factor" and told in AUTOENCODERS else ""
            raise FitError(
                f"{where}: the config.json beside it says {name} {told}{known}, and this project computes "
                f"the {part} with {' or '.join(map(str, values))}: it is another model's, or trained anew, "
                "and would give wrong results"
            )


def _same(told: Any, value: Any) -> bool:
    """Whether a config says a value; numbers are rounded as a config writes them."""
    numbers = isinstance(told, int | float) and isinstance(value, int | float)
    return isclose(told, value, rel_tol=1e-4) if numbers else told == value


def _clip(component: Component) -> CLIP:
    """Build a CLIP encoder; what no shape tells is as config.json says, or else usual for the part."""
    usual = "quick_gelu" if component.part == "clip_l" else "gelu"
    config = CLIPConfig.from_shapes(
        component.shapes(),
        activation=component.config.get("hidden_act", usual),
        num_heads=component.config.get("num_attention_heads"),
    )
    return CLIP(config)


def _controlnet(component: Component) -> ControlNet | JointControlNet:
    """Build a ControlNet of either kind; config.json tells whether a joint one reads the pooled text."""
    if kind_of("controlnet", component.recipes) == "controlnet":
        return ControlNet(ControlNetConfig.from_shapes(component.shapes()))
    reads_pooled = not component.config.get("force_zeros_for_pooled_projection", True)
    return JointControlNet(JointControlNetConfig.from_shapes(component.shapes(), reads_pooled=reads_pooled))


_MODULES: Mapping[str, Callable[[Component], nn.Module]] = {
    "mmdit": lambda component: MMDiT(MMDiTConfig.from_shapes(component.shapes())),
    "vae": lambda component: VAE(VAEConfig.from_shapes(component.shapes())),
    "clip_l": _clip,
    "clip_g": _clip,
    "t5": lambda component: T5(T5Config.from_shapes(component.shapes())),
    "controlnet": _controlnet,
}


def build_mmdit(tensors: Tensors) -> MMDiT:
    """Build the MM-DiT that fits these tensors, with weights that are not set.

    Args:
        tensors: name to tensor, or to shape. The names may have the official prefix or none, and
            may be those of diffusers; other parts' tensors are passed over.

    Returns:
        A module on the tensors' device and in their dtype, or on the meta device where they are there,
        where only shapes were given, and under `torch.device("meta")`.

    Raises:
        FitError: the sizes cannot be told from them.
    """
    return cast(MMDiT, _build("mmdit", tensors))


def build_vae(tensors: Tensors) -> VAE:
    """Build the autoencoder that fits these tensors; as `build_mmdit`."""
    return cast(VAE, _build("vae", tensors))


def build_controlnet(tensors: Tensors) -> ControlNet | JointControlNet:
    """Build the ControlNet that fits these tensors; as `build_mmdit`."""
    return cast(ControlNet | JointControlNet, _build("controlnet", tensors))


def build_t5(tensors: Tensors) -> T5:
    """Build the T5 encoder that fits these tensors; as `build_mmdit`."""
    return cast(T5, _build("t5", tensors))


def build_clip(tensors: Tensors, *, part: str | None = None) -> CLIP:
    """Build the CLIP text encoder that fits these tensors; as `build_mmdit`.

    Args:
        tensors: as in `build_mmdit`.
        part: "clip_l" or "clip_g"; None tells them apart by width, then by the projection.
    """
    return cast(CLIP, _build(part or "clip", tensors))


def _build(part: str, tensors: Tensors) -> nn.Module:
    """Describe tensors as a component, and build for it."""
    component, device = described(part, tensors)
    module = build_component(component).to(component.dtype)
    return module if device.type == "meta" else module.to_empty(device=device)


def position_difference(component: Component) -> tuple[float, int]:
    """Compare the position table that an MM-DiT's file stores with the one that is computed.

    A regular grid of 16 to 31 positions a side is compared, because a table over the same range with
    k times fewer steps has every k-th position of the full one.

    Args:
        component: an MM-DiT that fits its module.

    Returns:
        The largest absolute difference, and the base size (64 as in the released models, or the table's
        own side) of the formula that it is the difference from: the one that fits better.
    """
    (stored,) = component.tensors(("pos_embed",)).values()
    size, dim = isqrt(stored.shape[1]), stored.shape[2]
    step = max(step for step in range(1, max(2, size // 16 + 1)) if size % step == 0)
    grid = stored.view(size, size, dim)[::step, ::step].double()
    differences = {}
    for base_size in (64, size):
        with grid.device:  # whatever the default device is
            computed = position_table(dim, size // step, base_size=base_size).view_as(grid)
        differences[base_size] = float((grid - computed).abs().max())
    base_size = min(differences, key=differences.__getitem__)
    return differences[base_size], base_size


@cache
def released_shapes(variant: str) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    """Part to the shapes of its tensors in a released model, by official key, without a file.

    Args:
        variant: "sd3-medium", "sd3.5-medium" or "sd3.5-large", of which -turbo has the sizes too.
    """
    dim, depth, qk_norm, dual_blocks, pos_embed_size = RELEASED["mmdit"][variant]
    transformer = MMDiTConfig(
        dim=dim,
        depth=depth,
        num_heads=depth,
        pos_embed_size=pos_embed_size,
        qk_norm=qk_norm,
        dual_blocks=dual_blocks,
    )
    with torch.device("meta"), Uninitialised():
        mmdit = MMDiT(transformer)
    return {"mmdit": _shapes_of(mmdit), **_encoder_shapes()}


@cache
def _encoder_shapes() -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    """Those of the text encoders, which all variants share."""
    clip = {"vocab_size": 49408, "positions": 77}
    with torch.device("meta"), Uninitialised():
        modules = {
            "clip_l": CLIP(CLIPConfig(**clip, dim=768, depth=12, num_heads=12, mlp_dim=3072, **_CLIP_L)),
            "clip_g": CLIP(CLIPConfig(**clip, dim=1280, depth=32, num_heads=20, mlp_dim=5120, **_CLIP_G)),
            "t5": T5(
                T5Config(32128, dim=4096, depth=24, num_heads=64, head_dim=64, mlp_dim=10240, buckets=32)
            ),
        }
    return {part: _shapes_of(module) for part, module in modules.items()}


def _shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


_CLIP_L: Mapping[str, Any] = {"projection_dim": None, "activation": "quick_gelu"}
_CLIP_G: Mapping[str, Any] = {"projection_dim": 1280, "activation": "gelu"}
