"""Write a transformer's weights in 8 bits, and print what that costs.

The linear layers of the blocks are rounded, each row with a scale of its own. The table has, for each layer
alone and for all together, the relative error of the velocity at fixed states: on the way of drawing, where
the source has text encoders, and else of noise. The file is read like any other: --model FILE, with the other
parts from a folder by --text-encoders and --vae.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..pipeline import Pipeline
    from ..tasks.quantise import State

SUMMARY = "write a transformer in 8 bits, and measure what it costs"

PROMPTS = ("a red circle above a blue square", "a photograph of a cat on a chair, evening light")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="the model, as in --model of `sd35 generate`")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the file, as safetensors"
    )
    parser.add_argument(
        "--to", default="int8", metavar="NAME", help="int8 (the default), fp8 (e4m3fn) or fp8_e5m2"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ..., or auto (the default)")


def run(args: argparse.Namespace) -> int:
    """Round, measure, write; print the table and the path."""
    from weights import MissingComponent, resolve
    from weights.load import load_mmdit

    from ..device import as_device
    from ..loading import load
    from ..saved.write import check_output
    from ..tasks.quantise import made_up_states, quantise
    from .options import tell

    check_output([args.output], suffix=".safetensors", overwrite=args.overwrite)
    device = as_device(args.device)
    try:
        pipe = load(args.source, device)
        mmdit, states = pipe.mmdit, drawn_states(pipe)
    except MissingComponent as error:
        tell([f"states are made up, since there is no whole model: {error}"])
        mmdit = load_mmdit(args.source, device)
        states = made_up_states(mmdit)
    component = resolve(args.source, ["mmdit"]).component("mmdit")
    done = quantise(
        component,
        mmdit,
        states,
        args.output,
        to=args.to,
        overwrite=args.overwrite,
        progress=sys.stderr.isatty(),
    )
    print(done)
    print(done.path)
    return 0


def drawn_states(pipe: "Pipeline") -> "Iterator[State]":
    """States on the way from noise to pictures of fixed prompts, at most 256 pixels wide."""
    import torch

    from textenc.prompt import as_prompts

    from ..settings import Settings
    from ..tasks.quantise import State

    side = min(256, pipe.size.width, pipe.size.height)
    for prompt in PROMPTS:
        settings = Settings(prompts=as_prompts(prompt), steps=4, width=side, height=side)
        generation = pipe.steps(settings)
        cond = generation.encodings[0]
        for step in generation:
            sigma = torch.full((1,), float(step.sigma_next), device=pipe.device)
            if step.sigma_next > 0:
                yield State(step.x.to(pipe.device), sigma, cond.context, cond.pooled)
