"""Draw a picture again under another prompt, keeping the rest.

Its own prompt and settings come from the picture where it carries them; else --source-prompt says what
is to be seen in it. Steps, schedule and solver given here are those of both halves; seed, guidance and
negative prompt those of the second, and of the first where the picture carries no settings.
"""

import argparse
import sys
from pathlib import Path

from ..methods import Editing
from ..settings import NOT_TAKEN, Settings
from .control import OF_ALL, add_control, given_control
from .model import add_model, found_model, load_pipeline
from .options import add_prompts, add_settings, given_settings, prompt_of, tell

SUMMARY = "draw a picture again under another prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.usage = "%(prog)s FILE PROMPT -o PNG [options]"
    parser.add_argument("input", type=Path, metavar="FILE", help="a picture, or latents saved as safetensors")
    parser.add_argument("prompt", help="of the picture that is wanted")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help="the edited picture")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--bits", type=int, default=8, help="8 (the default) or 16 bits a channel")
    add_prompts(parser)
    add_settings(parser, "editing", Editing)
    add_control(parser)
    add_settings(parser, "sampling", Settings, but=(*NOT_TAKEN, *OF_ALL))
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Check what was asked for, load, edit and save; print the paths of the pictures."""
    from ..saved.png import check_pictures
    from ..tasks.edit import Edit, edit

    given = {**given_settings(args, Editing), **given_settings(args, Settings), **given_control(args)}
    request = Edit.of(args.input, prompt_of(args) or "", given=given)
    check_pictures(args.output, request.source.count, overwrite=args.overwrite, bits=args.bits)
    found = found_model(args, request.before)
    request = Edit.of(args.input, prompt_of(args) or "", given=given, variant=found.variant)
    pipe = load_pipeline(args, request.before, found=found, dtype=request.dtype, exact=True)
    edited = edit(pipe, request, progress=sys.stderr.isatty())
    tell(edited.notes)
    for path in edited.save(args.output, overwrite=args.overwrite, bits=args.bits):
        print(path)
    return 0
