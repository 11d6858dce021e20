"""From a source to a module that holds its weights, ready to run.

The module is built on the meta device, where it costs nothing, and takes over tensors that are
mapped from the file: nothing is read before it is used, and there is no second copy unless the
device or the dtype asks for one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mmdit import ControlNet, MMDiT
from textenc import CLIP, T5, CLIPTokenizer, T5Tokenizer, TextEncoder, Widths
from vae import VAE

from .build import build_component, check_fit
from .component import Component
from .errors import SourceError
from .load_into import Device, load_into
from .source import Source, resolve


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
    """Load one part that `resolve` found: build, check, and only then load.

    Raises:
        CheckpointError: as `load_mmdit`.
    """
    module = build_component(component)
    load_into(module, component, device, dtype)
    return module
