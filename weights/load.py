"""From a source to a module that holds its weights, ready to run.

The module is built on the meta device, where it costs nothing, and takes over tensors that are
mapped from the file: nothing is read before it is used, and there is no second copy unless the
device or the dtype asks for one. This is the one file of the package that knows the networks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmdit import ControlNet, ControlNetConfig, MMDiT, MMDiTConfig, position_table
from textenc import CLIP, T5, CLIPConfig, CLIPTokenizer, T5Config, T5Tokenizer, TextEncoder, Widths
from vae import VAE, VAEConfig

from .component import Component, described
from .errors import FitError, SourceError
from .fill import Device, Uninitialised, fill
from .fit import require_fit
from .parts import PARTS
from .source import Source, resolve

Tensors = Mapping[str, Tensor] | Mapping[str, Sequence[int]]


def load_mmdit(source: str | Path, device: Device = "cpu", dtype: torch.dtype | None = None) -> MMDiT:
    """Load the MM-DiT of a source, in eval mode, with parameters that want no gradient.

    Args:
        source: "tiny", a .safetensors file, a folder in the official or the diffusers layout, or
            "owner/name[/file][@revision]" on the Hugging Face Hub.
        device: where the weights go. On the CPU they stay mapped to the file.
        dtype: cast to this. None keeps what the file holds: the most common dtype where it holds
            several, and bfloat16 for fp8, in which nothing can be computed.

    Raises:
        CheckpointError: its subclasses tell a bad source, file, fit, weights that are not finite,
            and what the Hub refused, each before anything is loaded. Names, shapes and dtypes are checked
            of every tensor; NaN and infinities are looked for in all values of a part up to 0.5 GB, and in
            a sample of the big tensors of a larger one (`inspect(source, values=True)` reads all).
    """
    return cast(MMDiT, load_component(resolve(source, ["mmdit"]).component("mmdit"), device, dtype))


def load_vae(source: str | Path, device: Device = "cpu", dtype: torch.dtype | None = None) -> VAE:
    """Load the autoencoder of a source; as `load_mmdit`."""
    return cast(VAE, load_component(resolve(source, ["vae"]).component("vae"), device, dtype))


def load_controlnet(
    source: str | Path, device: Device = "cpu", dtype: torch.dtype | None = None
) -> ControlNet:
    """Load the ControlNet of a source; as `load_mmdit`."""
    found = resolve(source, ["controlnet"])
    return cast(ControlNet, load_component(found.component("controlnet"), device, dtype))


def load_t5(source: str | Path, device: Device = "cpu", dtype: torch.dtype | None = None) -> T5:
    """Load the T5 encoder of a source; as `load_mmdit`."""
    return cast(T5, load_component(resolve(source, ["t5"]).component("t5"), device, dtype))


def load_clip(
    source: str | Path, device: Device = "cpu", dtype: torch.dtype | None = None, *, part: str | None = None
) -> CLIP:
    """Load one CLIP text encoder of a source; as `load_mmdit`.

    Args:
        source: as in `load_mmdit`.
        device: where the weights go.
        dtype: cast to this; None keeps what the file holds.
        part: "clip_l" or "clip_g"; needed only where the source holds both.

    Raises:
        CheckpointError: as `load_mmdit`, or both are there and `part` does not say which.
    """
    if part not in (None, "clip_l", "clip_g"):
        raise SourceError(f"part is 'clip_l' or 'clip_g', not {part!r}")
    found = resolve(source, ["clip_l", "clip_g"] if part is None else [part])
    if len(found.components) > 1:
        raise SourceError(f"{found.name} holds both CLIP encoders: say part='clip_l' or part='clip_g'")
    return cast(
        CLIP, load_component(found.component(part or next(iter(found.components), "clip_l")), device, dtype)
    )


def load_textenc(
    source: str | Path,
    device: Device = "cpu",
    dtype: torch.dtype | Mapping[str, torch.dtype | None] | None = None,
    *,
    clip_l: bool | str | Path = True,
    clip_g: bool | str | Path = True,
    t5: bool | str | Path = True,
    tokenizers: str | Path | None = None,
    one_by_one: bool = False,
) -> TextEncoder:
    """Load the text encoders of a source with their tokenizers.

    Args:
        source: as in `load_mmdit`.
        device: where the weights go.
        dtype: cast to this, or each encoder to its own, by the names of the arguments below; None keeps
            what a file holds.
        clip_l: False leaves this encoder out; another source takes it from there.
        clip_g: the same for CLIP-G.
        t5: the same for T5, which is 9.8 GB in the released models.
        tokenizers: another source for the tokenizers, which no weights file holds; None means `source`.
        one_by_one: load each encoder when a prompt is encoded, and free it before the next.

    Raises:
        CheckpointError: as `load_mmdit`; `MissingComponent` names an encoder or a tokenizer that is
            not there and says what to fetch. What headers can tell of any is told before one is loaded.
    """
    asked = {"clip_l": clip_l, "clip_g": clip_g, "t5": t5}
    here = [part for part, where in asked.items() if where is True]
    main = resolve(source, here)
    vocabularies = main if tokenizers is None else resolve(tokenizers, ())
    found: dict[str, Component] = {}
    for part, where in asked.items():
        if where is not False:
            found[part] = (main if where is True else resolve(where, [part])).component(part)
    # Headers and tokenizers come first: they are quick to read, and a bad one should not cost a download.
    for component in found.values():
        check_fit(component)
    read = {part: _tokenizer(part, vocabularies) for part in found}
    dtypes = dtype if isinstance(dtype, Mapping) else dict.fromkeys(found, dtype)
    loaders = {part: Loader(found[part], device, dtypes.get(part) or found[part].dtype) for part in found}
    encoders: dict[str, Any] = loaders if one_by_one else {part: load() for part, load in loaders.items()}
    return TextEncoder(
        clip_l=encoders.get("clip_l"),
        clip_g=encoders.get("clip_g"),
        t5=encoders.get("t5"),
        tokenizer_l=read.get("clip_l"),
        tokenizer_g=read.get("clip_g"),
        tokenizer_t5=read.get("t5"),
        widths=Widths() if len(found) == len(asked) else _widths(source, found),
    )


@dataclass(frozen=True)
class Loader:
    """Loads one part each time that it is called."""

    component: Component
    device: Device
    dtype: torch.dtype

    def __call__(self) -> Any:
        """The part, ready to run."""
        return load_component(self.component, self.device, self.dtype)


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
        computed = position_table(dim, size // step, base_size=base_size).view_as(grid)
        differences[base_size] = float((grid - computed).abs().max())
    base_size = min(differences, key=differences.__getitem__)
    return differences[base_size], base_size


def _tokenizer(part: str, source: Source) -> Any:
    """Read the tokenizer of one encoder."""
    if part == "t5":
        return T5Tokenizer.load(source.tokenizer(part))
    return CLIPTokenizer.load(source.tokenizer(part), pad_with_end=part == "clip_l")


def _widths(source: str | Path, found: Mapping[str, Component]) -> Widths:
    """How wide the encoders that were left out would be: what the source itself says, else SD3's widths."""
    keys = {
        "clip_l": "text_model.final_layer_norm.weight",
        "clip_g": "text_model.final_layer_norm.weight",
        "t5": "encoder.final_layer_norm.weight",
    }
    known = {part: component.shapes()[keys[part]][0] for part, component in found.items()}
    rest = resolve(source, ["mmdit", *(part for part in keys if part not in known)]).components
    known |= {part: rest[part].shapes()[keys[part]][0] for part in keys if part in rest}
    if "mmdit" in rest:
        known.setdefault("t5", rest["mmdit"].shapes()["context_embedder.weight"][1])
    names = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "context"}
    return Widths(**{names[part]: width for part, width in known.items()})


def load_component(
    component: Component, device: Device = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """Load one part that `resolve` found: build, check, and only then fill.

    Raises:
        CheckpointError: as `load_mmdit`.
    """
    module = build_component(component)
    fill(module, component, device, dtype)
    return module


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
        FitError: the sizes cannot be told, because a tensor that decides one is missing or misshapen.
    """
    try:
        with torch.device("meta"), Uninitialised():
            return _MODULES[component.part](component)
    except ValueError as error:
        raise FitError(
            f"{component.where or 'this'} holds no whole {PARTS[component.part]}: {error}"
        ) from error


def _clip(component: Component) -> CLIP:
    """Build a CLIP encoder; what no shape tells is config.json's word, or else the part's custom."""
    custom = "quick_gelu" if component.part == "clip_l" else "gelu"
    config = CLIPConfig.from_shapes(
        component.shapes(),
        activation=component.config.get("hidden_act", custom),
        num_heads=component.config.get("num_attention_heads"),
    )
    return CLIP(config)


_MODULES: Mapping[str, Callable[[Component], nn.Module]] = {
    "mmdit": lambda component: MMDiT(MMDiTConfig.from_shapes(component.shapes())),
    "vae": lambda component: VAE(VAEConfig.from_shapes(component.shapes())),
    "clip_l": _clip,
    "clip_g": _clip,
    "t5": lambda component: T5(T5Config.from_shapes(component.shapes())),
    "controlnet": lambda component: ControlNet(ControlNetConfig.from_shapes(component.shapes())),
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


def build_controlnet(tensors: Tensors) -> ControlNet:
    """Build the ControlNet that fits these tensors; as `build_mmdit`."""
    return cast(ControlNet, _build("controlnet", tensors))


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
