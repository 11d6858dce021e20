"""From a source to a pipeline.

The file is not called load.py: a submodule of that name would take the place of the function `sd35.load`.
"""

from collections.abc import Mapping

import torch

from .found import Found, Place, find, read
from .pipeline import Pipeline


def load(
    source: Place,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | Mapping[str, torch.dtype | None] | None = None,
    *,
    text: bool = True,
    text_encoders: Place | None = None,
    clip_l: bool | Place = True,
    clip_g: bool | Place = True,
    t5: bool | Place = True,
    tokenizers: Place | None = None,
    vae: Place | None = None,
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
        text: False leaves all text encoders out, for prompts that are encoded already.
        text_encoders: another source for the text encoders and their tokenizers.
        clip_l: False leaves this encoder out; another source takes it from there.
        clip_g: the same for CLIP-G.
        t5: the same for T5, which is 9.8 GB in the released models and of use for long prompts and for
            writing.
        tokenizers: another source for the tokenizers, which no weights file holds: the folder of a model, or
            one with vocab.json, merges.txt and spiece.model.
        vae: another source for the autoencoder.
        one_by_one: load each text encoder when prompts are encoded and free it before the next, so that only
            one is in memory at a time.

    Raises:
        SettingsError: there is no such device, or no such part.
        CheckpointError: its subclasses tell a bad source, a missing part, a damaged file, and what the Hub
            refused. What headers can tell is told before weights are read.
    """
    found = find(
        source,
        text=text,
        text_encoders=text_encoders,
        clip_l=clip_l,
        clip_g=clip_g,
        t5=t5,
        tokenizers=tokenizers,
        vae=vae,
    )
    return load_found(found, device, dtype, one_by_one=one_by_one)


def load_found(
    found: Found,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | Mapping[str, torch.dtype | None] | None = None,
    *,
    one_by_one: bool = False,
) -> Pipeline:
    """Read the weights of a model that was looked for already, by `find`; the rest is as in `load`."""
    return Pipeline(**vars(read(found, device, dtype, one_by_one=one_by_one)))
