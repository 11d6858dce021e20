"""From a source to a pipeline.

The file is not called load.py: a submodule of that name would take the place of the function `sd35.load`.
"""

from dataclasses import replace
from math import prod
from typing import Any

import torch

from mmdit import compile_blocks, graph_forward
from weights import SourceError
from weights.adapters import read_adapter
from weights.load import Loader

from .adapters.fp8 import check_fp8, use_fp8
from .adapters.lora import shapes_of
from .device import as_device, check_compiler, check_graphs, fast_dtype
from .errors import SettingsError
from .found import Found, Place, dtypes_of, find, read
from .loras import Lora, Loras
from .memory import Level, choose, free_memory, keep_blocks
from .needs import Dtypes, needs_of
from .pipeline import Pipeline

LARGE = 1e9
"""Bytes of weights in bfloat16 from which a model may be computed in it on a CPU unasked."""


def load(
    source: Place,
    device: torch.device | str = "cpu",
    dtype: Dtypes = None,
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
    memory: Level = "auto",
    compile: bool = False,
    cuda_graphs: bool = False,
    fp8: bool = False,
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
            "clip_g", "t5". None, or no entry, means float32 on a CPU and the files' own dtype elsewhere,
            which is what the models are run in. But None is bfloat16 on a CPU that multiplies it fast, where
            the model has more than 1 GB of weights in it; smaller ones, like the embedded one, stay in
            float32, so that their pictures are the same on every machine. `invert` and `edit` widen it again.
        text: False leaves all text encoders out, for prompts that are encoded already.
        text_encoders: another source for the text encoders and their tokenizers.
        clip_l: False leaves this encoder out; another source takes it from there.
        clip_g: the same for CLIP-G.
        t5: the same for T5, which is 9.8 GB in the released models and of use for long prompts and for
            writing.
        tokenizers: another source for the tokenizers, which no weights file holds: the folder of a model, or
            one with vocab.json, merges.txt and spiece.model.
        vae: another source for the autoencoder.
        lora: a LoRA (LoHa, LoKr, DoRA) to put on it, or a list of several: each a source, "SOURCE:SCALE" or a
            pair of both; see `sd35.add_lora`.
        one_by_one: load each text encoder when prompts are encoded and free it before the next, so that only
            one is in memory at a time.
        memory: "low" and "lower" draw in less memory with equal bits, "lowest" in the least with small
            differences, "auto" takes the first of "off" and these that fits into what is free; see
            `sd35.memory` and docs/speed.md. `Pipeline.notes` say what was done.
        compile: run the transformer's blocks through torch.compile: faster on a GPU after some seconds at the
            first step; results differ by rounding, and pictures record it.
        cuda_graphs: record the transformer's kernels at the first step, and repeat them at the others: the
            same bits, faster for small pictures, where a GPU waits for Python. All of it stays on the GPU.
        fp8: take the products of the transformer's blocks in 8-bit floats, on a GPU that has them: half the
            weights, faster when compiled; results differ, and pictures record it.
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
    device = as_device(device)
    chosen, notes = (dtype, ()) if dtype is not None else usual_dtype(found, device)
    pipe = load_found(
        found,
        device,
        chosen,
        memory=memory,
        compile=compile,
        cuda_graphs=cuda_graphs,
        fp8=fp8,
        one_by_one=one_by_one,
        unpack=unpack,
        hash_values=hash_values,
    )
    pipe.notes = (*notes, *pipe.notes)
    for one in loras:
        pipe.add_lora(one.source, one.scale)
    return pipe


def load_found(
    found: Found,
    device: torch.device | str = "cpu",
    dtype: Dtypes = None,
    *,
    memory: Level = "auto",
    compile: bool = False,
    cuda_graphs: bool = False,
    fp8: bool = False,
    one_by_one: bool = False,
    unpack: bool = False,
    hash_values: bool = False,
) -> Pipeline:
    """Read the weights of a model that was looked for already, by `find`; the rest is as in `load`.

    No dtype means float32 on a CPU, whatever its size.
    """
    device = as_device(device)
    if compile:
        check_compiler(device)
    if cuda_graphs:
        check_graphs(device)
    if fp8:
        computed = dtypes_of(device, dtype)["mmdit"] or found.components["mmdit"].dtype
        check_fp8(device, computed, unpack=unpack)
    needs = needs_of(found, device, dtype, unpack=unpack, fp8=fp8)
    plan, notes = choose(memory, needs, device, free_memory(device))
    plan = replace(plan, one_by_one=plan.one_by_one or one_by_one)
    if cuda_graphs and plan.away:
        raise SettingsError(
            f"cuda_graphs needs the transformer's weights in one place, and memory {memory} moves them "
            f"({plan}): leave it out, or ask for memory off with one_by_one"
        )
    how = {"one_by_one": plan.one_by_one, "unpack": unpack, "hash_values": hash_values}
    model = read(found, device, dtype, away=plan.away or fp8, **how)
    if fp8:  # before it takes a card's memory, which may hold 8 bits and not 16
        use_fp8(model.mmdit)
        model.mmdit.to("cpu" if plan.away else device)
    offloaded = keep_blocks(model.mmdit, plan, device)
    if plan.by_layers and model.text is not None and isinstance(model.text.t5, Loader):
        model.text = replace(model.text, t5=replace(model.text.t5, by_layers=True))
    if compile:
        compile_blocks(model.mmdit)
        notes = (*notes, "the transformer is compiled by block: its first step takes some seconds more")
    if cuda_graphs:
        graph_forward(model.mmdit)
    return Pipeline(**{**vars(model), "plan": plan, "notes": notes, "offloaded": offloaded})


def usual_dtype(found: Found, device: torch.device) -> tuple[torch.dtype | None, tuple[str, ...]]:
    """What a model is computed in where nobody says it, and a line that tells; see `load`."""
    numbers = sum(prod(shape) for part in found.components.values() for shape in part.shapes().values())
    if device.type != "cpu" or 2 * numbers <= LARGE or fast_dtype() == torch.float32:
        return None, ()
    size = 2e-9 * numbers
    return torch.bfloat16, (
        f"computed in bfloat16, which this processor multiplies fast: {size:.3g} GB of weights in place of "
        f"{2 * size:.3g}; dtype float32 rounds less",
    )


def check_loras(found: Found, loras: tuple[Lora, ...]) -> None:
    """See that LoRAs are there and fit a model that was found, before weights are read.

    Args:
        found: what `find` gave.
        loras: those of an earlier picture have the hash of the file that it was drawn with.

    Raises:
        SettingsError: a LoRA of a picture is not there, or is another file now.
        weights.AdapterError: one is none of this model.
    """
    if not loras:
        return
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
