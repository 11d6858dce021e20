"""From a source to a module that holds its weights, ready to run.

The module is built on the meta device, where it costs nothing, and takes over tensors that are
mapped from the file: nothing is read before it is used, and there is no second copy unless the
device or the dtype asks for one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mmdit import ControlNet, JointControlNet, MMDiT
from textenc import CLIP, T5, CLIPTokenizer, T5Tokenizer, TextEncoder, Widths
from textenc.by_layers import by_layers
from vae import VAE

from .build import build_component, check_fit
from .component import Component
from .errors import SourceError
from .load_into import Device, load_into
from .source import Source, resolve


def load_mmdit(
    source: str | Path, device: Device = "cpu", dtype: torch.dtype | None = None, *, unpack: bool = False
) -> MMDiT:
    """Load the MM-DiT of a source, in eval mode, with parameters that want no gradient.

    Args:
        source: "tiny", a .safetensors or .gguf file, a folder in the official or the diffusers layout, or
            "owner/name[/file][@revision]" on the Hugging Face Hub.
        device: where the weights go. On the CPU they stay mapped to the file.
        dtype: cast to this. None keeps what the file holds: the most common dtype where it holds
            several, and bfloat16 for fp8 and GGUF, in which nothing can be computed.
        unpack: weights in fp8, int8 and GGUF's blocks stay as they are, and each linear layer makes its
            numbers when it is used; True makes all of them now, which takes more memory and less time.

    Raises:
        CheckpointError: its subclasses tell a bad source, file, fit, weights that are not finite,
            and what the Hub refused, each before anything is loaded. Names, shapes and dtypes are checked
            of every tensor; NaN and infinities are looked for in all values of a part up to 0.5 GB, and in
            a sample of the big tensors of a larger one (`inspect(source, values=True)` reads all).
    """
    component = resolve(source, ["mmdit"]).component("mmdit")
    return cast(MMDiT, load_component(component, device, dtype, unpack=unpack))


def load_vae(source: str | Path, device: Device = "cpu", dtype: torch.dtype | None = None) -> VAE:
    """Load the autoencoder of a source; as `load_mmdit`."""
    return cast(VAE, load_component(resolve(source, ["vae"]).component("vae"), device, dtype))


def load_controlnet(
    source: str | Path, device: Device = "cpu", dtype: torch.dtype | None = None
) -> ControlNet | JointControlNet:
    """Load the ControlNet of a source, of either kind; as `load_mmdit`."""
    found = resolve(source, ["controlnet"])
    return cast(ControlNet | JointControlNet, load_component(found.component("controlnet"), device, dtype))


def load_t5(
    source: str | Path, device: Device = "cpu", dtype: torch.dtype | None = None, *, unpack: bool = False
) -> T5:
    """Load the T5 encoder of a source; as `load_mmdit`."""
    return cast(T5, load_component(resolve(source, ["t5"]).component("t5"), device, dtype, unpack=unpack))


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
    main = resolve(source, [part for part, where in asked.items() if where is True])
    places = {
        part: main if where is True else resolve(where, [part])
        for part, where in asked.items()
        if where is not False
    }
    components = {part: place.component(part) for part, place in places.items()}
    modules = {part: check_fit(component) for part, component in components.items()}
    where = [main, *places.values()] if tokenizers is None else [resolve(tokenizers, ())]
    read = {part: read_tokenizer(part, where) for part in components}
    left_out = asked.keys() - components.keys()  # what the source says of their widths still counts
    rest = resolve(source, ["mmdit", *sorted(left_out)]).components if left_out else {}
    widths = widths_of({**rest, **components})
    dtypes = dtype if isinstance(dtype, Mapping) else dict.fromkeys(components, dtype)
    return join_textenc(components, modules, read, widths, device, dtypes, one_by_one=one_by_one)


@dataclass(frozen=True)
class Loader:
    """Loads one part each time that it is called."""

    component: Component
    device: Device
    dtype: torch.dtype
    unpack: bool = False
    by_layers: bool = False
    """Of T5: its weights stay on the CPU, and each layer's are on the device while it runs."""
    changes: tuple[Callable[[nn.Module], object], ...] = ()
    """What is done to the part each time, in order, as putting a LoRA on it."""

    def __call__(self) -> Any:
        """The part, ready to run."""
        device = "cpu" if self.by_layers else self.device
        module = load_component(self.component, device, self.dtype, unpack=self.unpack)
        for change in self.changes:
            change(module)
        return by_layers(cast(T5, module), self.device) if self.by_layers else module


def join_textenc(
    components: Mapping[str, Component],
    modules: Mapping[str, nn.Module],
    tokenizers: Mapping[str, Any],
    widths: Widths,
    device: Device,
    dtypes: Mapping[str, torch.dtype | None],
    *,
    one_by_one: bool,
    unpack: bool = False,
) -> TextEncoder:
    """Load encoders that were found and join them with their tokenizers.

    Args:
        components: the encoders, by part; one that is not here is left out.
        modules: what `check_fit` gave for each.
        tokenizers: what `read_tokenizer` gave for each.
        widths: of all three, see `widths_of`.
        device: where the weights go.
        dtypes: part to what it is cast to; None, or no entry, keeps what its file holds.
        one_by_one: load each encoder when a prompt is encoded, and free it before the next.
        unpack: as in `load_mmdit`.
    """
    encoders: dict[str, Any] = {}
    for part, component in components.items():
        dtype = dtypes.get(part) or component.dtype
        if one_by_one:
            encoders[part] = Loader(component, device, dtype, unpack)
        else:
            encoders[part] = load_component(component, device, dtype, modules[part], unpack=unpack)
    return TextEncoder(
        clip_l=encoders.get("clip_l"),
        clip_g=encoders.get("clip_g"),
        t5=encoders.get("t5"),
        tokenizer_l=tokenizers.get("clip_l"),
        tokenizer_g=tokenizers.get("clip_g"),
        tokenizer_t5=tokenizers.get("t5"),
        widths=widths,
    )


def read_tokenizer(part: str, sources: Sequence[Source]) -> CLIPTokenizer | T5Tokenizer:
    """Read the tokenizer of one encoder from the first source that has it.

    Raises:
        MissingComponent: none has it; the message says which small files to fetch.
    """
    folder = next((one for one in sources if part in one.tokenizers), sources[0]).tokenizer(part)
    if part == "t5":
        return T5Tokenizer.load(folder)
    return CLIPTokenizer.load(folder, pad_with_end=part == "clip_l")


def widths_of(components: Mapping[str, Component]) -> Widths:
    """How wide each text encoder is, or would be: by its own tensors, else by the MM-DiT's, else as SD3's."""
    norms = {
        "clip_l": "text_model.final_layer_norm.weight",
        "clip_g": "text_model.final_layer_norm.weight",
        "t5": "encoder.final_layer_norm.weight",
    }
    known = {part: components[part].shapes()[norm][0] for part, norm in norms.items() if part in components}
    if "mmdit" in components:
        shapes = components["mmdit"].shapes()
        known.setdefault("t5", shapes["context_embedder.weight"][1])
        pooled = shapes["y_embedder.mlp.0.weight"][1]
        known.setdefault("clip_l", pooled - known["clip_g"] if "clip_g" in known else min(768, pooled // 2))
        known.setdefault("clip_g", pooled - known["clip_l"])
    names = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "context"}
    return Widths(**{names[part]: width for part, width in known.items()})


def load_component(
    component: Component,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    module: nn.Module | None = None,
    *,
    unpack: bool = False,
) -> nn.Module:
    """Load one part that `resolve` found: build, check, and only then load.

    Args:
        component: the part.
        device: where the weights go.
        dtype: cast to this; None keeps what the file holds.
        module: the empty module that `check_fit` built for it. It is taken over, once: the next load builds
            another.
        unpack: as in `load_mmdit`.

    Raises:
        CheckpointError: as `load_mmdit`.
    """
    if module is None or not all(tensor.is_meta for tensor in module.state_dict().values()):
        module = build_component(component)
    load_into(module, component, device, dtype, unpack=unpack)
    return module
