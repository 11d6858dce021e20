"""Draw a picture that bears a hidden mark, and find the mark again.

    sd35 watermark put "a red circle" --key 7 -o marked.png --save-latents marked.safetensors
    sd35 watermark find marked.safetensors --key 7

The mark is in the noise that the picture is drawn from, and is looked for in the noise that leads back to it.
Latents keep it; what is left of it in a picture depends on the model and its texture: the embedded model's
pictures keep none. The exit status of find is 0 where the mark is found in every picture, and else 1.
"""

import argparse
import sys
from pathlib import Path

from ..fields import table
from ..inputs import PictureSettings
from ..methods import Marking
from ..settings import NOT_TAKEN, Settings
from .model import add_model, found_model, load_pipeline
from .options import add_prompts, add_settings, given_settings, prompt_of, tell

OF_PICTURE = ("width", "height", "seed")
"""Settings that a picture tells by itself, or that a search has no use for."""
SUMMARY = "hide a mark in a picture's noise, or look for it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of both halves."""
    halves = parser.add_subparsers(dest="half", metavar="put|find", required=True)
    put = halves.add_parser("put", help="draw a picture that bears a mark")
    put.add_argument("prompt", help="what to draw")
    put.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help="the picture")
    put.add_argument("--overwrite", action="store_true", help="replace files that exist")
    put.add_argument(
        "--save-latents", type=Path, metavar="FILE", help="also write the latents, as safetensors"
    )
    find = halves.add_parser("find", help="look for a mark")
    find.add_argument("input", type=Path, metavar="FILE", help="a picture, or latents saved as safetensors")
    find.add_argument("prompt", nargs="?", help="of the picture, where it does not carry its own")
    for half in (put, find):
        half.add_argument("--traceback", action="store_true", help="show where an error arose")
    for half, but in ((put, ()), (find, (*NOT_TAKEN, *OF_PICTURE))):
        add_prompts(half)
        add_settings(half, "mark", Marking)
        add_settings(half, "sampling", Settings, but=(*table(PictureSettings), *but))
        add_model(half)


def run(args: argparse.Namespace) -> int:
    """Draw with a mark and print the paths, or look for one and print the verdict."""
    return _put(args) if args.half == "put" else _find(args)


def _put(args: argparse.Namespace) -> int:
    from ..saved.png import check_pictures
    from ..saved.write import check_output
    from ..tasks.watermark import PutMark, put_mark

    prompt, given = prompt_of(args), {**given_settings(args, Marking), **given_settings(args, Settings)}
    settings = PutMark.of(prompt, given).settings
    check_pictures(args.output, settings.images, overwrite=args.overwrite, bits=8)
    if args.save_latents is not None:
        check_output([args.save_latents], suffix=".safetensors", overwrite=args.overwrite)
    found = found_model(args, settings)
    request = PutMark.of(prompt, given, variant=found.variant, shift=found.schedule_shift)
    pipe = load_pipeline(args, request.settings, found=found)
    result = put_mark(pipe, request, progress=sys.stderr.isatty())
    tell(result.notes)
    print(*result.save(args.output, overwrite=args.overwrite), sep="\n")
    if args.save_latents is not None:
        print(*result.state().save(args.save_latents, overwrite=args.overwrite))
    return 0


def _find(args: argparse.Namespace) -> int:
    from ..tasks.watermark import FindMark, find_mark

    given = {**given_settings(args, Marking), **given_settings(args, Settings)}
    request = FindMark.of(args.input, prompt_of(args), given)
    pipe = load_pipeline(args, request.inverting.settings, dtype=request.inverting.dtype)
    found = find_mark(pipe, request, progress=sys.stderr.isatty())
    tell(found.notes)
    print(found)
    return 0 if all(found.found) else 1
