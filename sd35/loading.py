"""From a source to a pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from mmdit import MMDiT, MMDiTConfig
from vae import VAE, VAEConfig
from weights import load_textenc, resolve
from weights.build import check_fit
from weights.component import Component
from weights.load import load_component
from weights.parts import PARTS

from .device import as_device
from .errors import SettingsError
from .pipeline import Pipeline
from .size import Size, native_size


@dataclass(frozen=True)
class Found:
    """The transformer and the autoencoder of a model, known and seen to be whole by their headers."""

    transformer: Component
    autoencoder: Component
    mmdit: MMDiTConfig
    vae: VAEConfig
    size: Size
    """What the model was trained at."""


def find(source: str | Path, vae: str | Path | None = None) -> Found:
    """Look into the headers of a model's transformer and autoencoder; no weights are read.

    Args:
        source: as in `load`.
        vae: another source for the autoencoder.

    Raises:
        CheckpointError: as `load`.
    """
    found = resolve(source, ["mmdit"] if vae is not None else ["mmdit", "vae"])
    transformer = found.component("mmdit")
    autoencoder = (found if vae is None else resolve(vae, ["vae"])).component("vae")
    mmdit, autoencoder_module = cast(MMDiT, check_fit(transformer)), cast(VAE, check_fit(autoencoder))
    return Found(transformer, autoencoder, mmdit.config, autoencoder_module.config, native_size(transformer))


def load(
    source: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | Mapping[str, torch.dtype | None] | None = None,
    *,
    text: bool | str | Path = True,
    t5: bool | str | Path = True,
    vae: str | Path | None = None,
    one_by_one: bool = False,
) -> Pipeline:
    """Load a model: transformer, autoencoder, text encoders and their tokenizers.

    Without text encoders, pictures are drawn from prompts that were encoded before (`encode_prompt`; a file
    holds what `Encoding.to_tensors` gives), by `flow` over the pipeline's velocity:

        velocity = pipe.velocity(prompt, negative, guidance_scale=4.5)  # two Encodings
        latents = flow.solve(velocity, noise.to(pipe.device), flow.sigmas(28))  # noise (B, 16, h, w)
        image = pipe.decode(latents)

    Args:
        source: "tiny", a .safetensors file, a folder in the official or the diffusers layout, or
            "owner/name[/file][@revision]" on the Hugging Face Hub.
        device: where everything runs; "auto" is the fastest there is.
        dtype: what everything is computed in, or what each part is, by its name: "mmdit", "vae", "clip_l",
            "clip_g", "t5". None, or no entry, means float32 on a CPU, which has no fast arithmetic in less
            and gains accuracy, and the files' own dtype elsewhere, which is what the models are run in.
        text: False leaves the text encoders out, for prompts that are encoded already; another source takes
            them and their tokenizers from there.
        t5: False leaves T5 out, which is 9.8 GB in the released models and of use for long prompts and for
            writing; another source takes it from there.
        vae: another source for the autoencoder.
        one_by_one: load each text encoder when prompts are encoded and free it before the next, so that only
            one is in memory at a time.

    Raises:
        SettingsError: there is no such device, or no such part.
        CheckpointError: its subclasses tell a bad source, a missing part, a damaged file, and what the Hub
            refused. What headers can tell is told before weights are read.
    """
    device = as_device(device)
    if isinstance(dtype, Mapping) and (unknown := sorted(dtype.keys() - PARTS.keys())):
        raise SettingsError(f"dtype is of the parts {', '.join(PARTS)}; got {', '.join(unknown)}")
    usual = torch.float32 if device.type == "cpu" else None
    given = dtype if isinstance(dtype, Mapping) else dict.fromkeys(PARTS, dtype)
    dtypes = {part: given.get(part) or usual for part in PARTS}
    found = find(source, vae)
    encoders = None
    if text is not False:
        where = source if text is True else text
        encoders = load_textenc(where, device, dtypes, t5=t5, one_by_one=one_by_one)
    return Pipeline(
        mmdit=cast(MMDiT, load_component(found.transformer, device, dtypes["mmdit"])),
        vae=cast(VAE, load_component(found.autoencoder, device, dtypes["vae"])),
        text=encoders,
        model=str(source),
        size=found.size,
        sources={
            part: str(other)
            for part, other in {"vae": vae, "text": text, "t5": t5}.items()
            if isinstance(other, str | Path)
        },
    )
