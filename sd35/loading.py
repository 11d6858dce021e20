"""From a source to a pipeline."""

from pathlib import Path

import torch

from weights import load_mmdit, load_textenc, load_vae, resolve

from .device import as_device
from .pipeline import Pipeline
from .size import native_size


def load(
    source: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    text: bool | str | Path = True,
    t5: bool | str | Path = True,
    vae: str | Path | None = None,
    one_by_one: bool = False,
) -> Pipeline:
    """Load a model: transformer, autoencoder, text encoders and their tokenizers.

    Args:
        source: "tiny", a .safetensors file, a folder in the official or the diffusers layout, or
            "owner/name[/file][@revision]" on the Hugging Face Hub.
        device: where everything runs; "auto" is the fastest there is.
        dtype: what everything is computed in. None means float32 on a CPU, which has no fast arithmetic in
            less and gains accuracy, and the files' own dtype elsewhere, which is what the models are run in.
        text: False leaves the text encoders out, for prompts that are encoded already; another source takes
            them and their tokenizers from there.
        t5: False leaves T5 out, which is 9.8 GB in the released models and of use for long prompts and for
            writing; another source takes it from there.
        vae: another source for the autoencoder.
        one_by_one: load each text encoder when prompts are encoded and free it before the next, so that only
            one is in memory at a time.

    Raises:
        SettingsError: there is no such device.
        CheckpointError: its subclasses tell a bad source, a missing part, a damaged file, and what the Hub
            refused. What headers can tell is told before weights are read.
    """
    device = as_device(device)
    dtype = torch.float32 if dtype is None and device.type == "cpu" else dtype
    found = resolve(source, ["mmdit"] if vae is not None else ["mmdit", "vae"])
    transformer = found.component("mmdit")
    if vae is None:
        found.component("vae")
    encoders = None
    if text is not False:
        encoders = load_textenc(source if text is True else text, device, dtype, t5=t5, one_by_one=one_by_one)
    autoencoder = load_vae(source if vae is None else vae, device, dtype)
    mmdit = load_mmdit(source, device, dtype)
    return Pipeline(mmdit, autoencoder, encoders, model=str(source), size=native_size(transformer))
