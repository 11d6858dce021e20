"""From a source to a pipeline.

The file is not called load.py: a submodule of that name would take the place of the function `sd35.load`.
"""

from collections.abc import Mapping
from typing import Any

import torch

from weights import SourceError
from weights.adapters import read_adapter

from .adapters.lora import shapes_of
from .errors import SettingsError
from .found import Found, Place, find, read
from .loras import Lora, Loras
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
    lora: Any = None,
    one_by_one: bool = False,
    unpack: bool = False,
    hash_values: bool = False,
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
        lora: a LoRA or its kin to put on it, or a list of several: each a source, "SOURCE:SCALE" or a pair of
            both; see `sd35.add_lora`.
        one_by_one: load each text encoder when prompts are encoded and free it before the next, so that only
            one is in memory at a time.
        unpack: weights in fp8, int8 and GGUF's blocks stay as they are, and each linear layer makes its
            numbers when it is used; True makes all of them now, which takes more memory and less time.
        hash_values: record in pictures a hash of every byte of the files, for which all are read; by default
            it is one of their headers and of samples.

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
    loras = Loras().check("lora", [] if lora is None else lora)
    check_loras(found, loras)
    pipe = load_found(found, device, dtype, one_by_one=one_by_one, unpack=unpack, hash_values=hash_values)
    for one in loras:
        pipe.add_lora(one.source, one.scale)
    return pipe


def load_found(
    found: Found,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | Mapping[str, torch.dtype | None] | None = None,
    **options: bool,
) -> Pipeline:
    """Read the weights of a model that was looked for already, by `find`; the rest is as in `load`."""
    return Pipeline(**vars(read(found, device, dtype, **options)))


def check_loras(found: Found, loras: tuple[Lora, ...]) -> None:
    """See that LoRAs are there and fit a model that was found, before weights are read.

    Args:
        found: what `find` gave.
        loras: those of an earlier picture have the hash of the file that it was drawn with.

    Raises:
        SettingsError: a LoRA of a picture is not there, or is another file now.
        weights.AdapterError: one is none of this model.
    """
    shapes = {part: shapes_of(module) for part, module in found.modules.items() if part != "vae"}
    for one in loras:
        try:
            adapter = read_adapter(one.source, shapes)
        except SourceError as error:
            if not one.digest:
                raise
            raise SettingsError(
                f"the picture was drawn with the LoRA {one}, which is not there: name it by "
                f"--lora FILE:{one.scale:g}, or leave it out by --lora none"
            ) from error
        if one.digest and adapter.digest != one.digest:
            raise SettingsError(
                f"the picture was drawn with the LoRA {one}, and that file is another one now (SHA-256 "
                f"{adapter.digest[:12]}): name the right one, or this one, by --lora FILE:{one.scale:g}"
            )
