"""Find the noise that a picture was drawn from, and print what is lost on the way.

Prompt and settings come from the picture itself where it carries them; options beside it change what they
name. Saved latents (sd35 generate --save-latents) return better than any picture, and exactly where they come
from a reversible solver.
"""

import argparse
import sys
from pathlib import Path

from ..methods import Inverting
from ..settings import NOT_TAKEN, Settings
from .control import OF_ALL, add_control, given_control
from .model import add_model, found_model, load_pipeline
from .options import add_prompts, add_settings, given_settings, prompt_of, tell

SUMMARY = "find the noise that a picture was drawn from"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.usage = "%(prog)s FILE [PROMPT] -o FILE [options]"
    parser.add_argument("input", type=Path, metavar="FILE", help="a picture, or latents saved as safetensors")
    parser.add_argument("prompt", nargs="?", help="of the picture, where it does not carry its own")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the noise, as safetensors"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--per-step", action="store_true", help="also print how each step went")
    parser.add_argument(
        "--noise", type=Path, metavar="FILE", help="the true noise, where it is known, to compare with"
    )
    add_prompts(parser)
    add_settings(parser, "inversion", Inverting)
    add_control(parser)
    add_settings(parser, "sampling", Settings, but=(*NOT_TAKEN, *OF_ALL))
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Invert, write the noise, print the table of losses."""
    from flow import Inversion

    from ..saved.write import check_output
    from ..tasks.invert import Invert, invert

    check_output([args.output], suffix=".safetensors", overwrite=args.overwrite)
    given = {**given_settings(args, Inverting), **given_settings(args, Settings), **given_control(args)}
    request = Invert.of(args.input, prompt_of(args), given, noise=args.noise)
    found = found_model(args, request.settings)
    request = Invert.of(args.input, prompt_of(args), given, noise=args.noise, variant=found.variant)
    pipe = load_pipeline(args, request.settings, found=found, dtype=request.dtype, exact=True)
    inverted = invert(pipe, request, progress=sys.stderr.isatty())
    tell(inverted.notes)
    print(inverted)
    if args.per_step:
        print(inverted.report)
    told = Inversion(inverted.noise, inverted.report).decibels
    or_more = "" if inverted.report.problems else " or more"
    worth = f", by its own check noise of some {min(told):.0f} dB{or_more}" if told else ""
    print(f"{inverted.report.evaluations} evaluations, method {inverted.report.method}{worth}")
    print(*inverted.state().save(args.output, overwrite=args.overwrite))
    return 0
