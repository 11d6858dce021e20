"""Draw a picture that bears a hidden mark, or look for the mark in one.

    sd35 watermark put "a red circle" --key 42 -o marked.png
    sd35 watermark find marked.png --key 42

The mark is in the noise that the picture is drawn from. Who has the model and the key finds it; the prompt is
not needed. `find` prints the share of keys that agree with the picture as well as this one: at 0.01 or less
the mark counts as found, which happens to one in a hundred pictures that do not bear it.
"""

import argparse
import sys
from pathlib import Path

from ..methods import Marking
from ..settings import Settings, settings_of
from .model import add_model, found_model, load_pipeline
from .options import add_settings, given_settings

SUMMARY = "hide a mark in pictures, and find it again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.usage = "%(prog)s {put PROMPT,find FILE} --key N [options]"
    parser.add_argument("action", choices=["put", "find"], help="draw with a mark, or look for one")
    parser.add_argument("subject", metavar="PROMPT|FILE", help="put: what to draw; find: the picture")
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help="of put: the picture")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--bits", type=int, default=8, help="of put: 8 (the default) or 16 bits a channel")
    add_settings(parser, "mark", Marking)
    add_settings(parser, "sampling", Settings)
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Draw with a mark, or look for it; exit status 1 where it is not found."""
    from ..errors import SettingsError
    from ..tasks.watermark import check_marking

    given = {**given_settings(args, Marking), **given_settings(args, Settings)}
    check_marking(given)
    if args.action == "put":
        return _put(args, given)
    if args.output is not None:
        raise SettingsError("--output is of put: find writes nothing")
    return _find(args, given)


def _put(args: argparse.Namespace, given: dict[str, object]) -> int:
    from ..errors import SettingsError
    from ..saved.png import check_pictures
    from ..tasks.watermark import Put, put

    if args.output is None:
        raise SettingsError("name the picture: -o marked.png")
    request = Put.of(args.subject, given)
    check_pictures(args.output, request.settings.images, overwrite=args.overwrite, bits=args.bits)
    found = found_model(args, request.settings)
    request = Put.of(args.subject, given, variant=found.variant)
    pipe = load_pipeline(args, request.settings, found=found)
    result = put(pipe, request, progress=sys.stderr.isatty())
    for saved in result.save(args.output, overwrite=args.overwrite, bits=args.bits):
        print(saved)
    return 0


def _find(args: argparse.Namespace, given: dict[str, object]) -> int:
    from ..tasks.source import open_source
    from ..tasks.watermark import find

    saved = open_source(args.subject).saved or settings_of({"prompts": ""})
    sought = find(
        load_pipeline(args, saved, dtype="float32"), args.subject, given, progress=sys.stderr.isatty()
    )
    for share, found in zip(sought.shares.tolist(), sought.found, strict=True):
        print(f"{'found' if found else 'not found'}: {share:.3f} of the keys agree as well")
    return 0 if all(sought.found) else 1
