"""Draw pictures of a prompt, or of every line of a file.

The picture carries its settings: `--from-image picture.png` draws it again, and options beside it
change what they name.
"""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_model, add_sampling, given_settings, load_pipeline

if TYPE_CHECKING:
    from ..settings import Settings

SUMMARY = "draw pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument("prompt", nargs="?", help="what to draw")
    parser.add_argument(
        "--prompts-file", metavar="FILE", help="prompts, one in each line, empty lines aside; - reads stdin"
    )
    parser.add_argument(
        "--from-image", type=Path, metavar="PNG", help="take the settings from a picture drawn here before"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PNG",
        help="the picture; several are numbered. By default it is named after the prompt and the seed",
    )
    output.add_argument("--overwrite", action="store_true", help="replace pictures that exist")
    output.add_argument(
        "--no-metadata", action="store_true", help="leave prompt and settings out of the picture"
    )
    output.add_argument(
        "--save-latents",
        type=Path,
        metavar="FILE",
        help="also write the latents as safetensors, with what a reversible solver needs to return from them",
    )
    output.add_argument(
        "--report",
        type=Path,
        metavar="HTML",
        help="also write a page that shows the generation from inside: steps, attention, tokens, ...",
    )
    output.add_argument("--bits", type=int, default=8, help="8 (the default) or 16 bits a channel")
    add_sampling(parser)
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Check what was asked for, load, draw and save; print the paths of the pictures."""
    from ..files import check_output
    from ..result import check_pictures

    settings = settings_of(args)
    path = args.output or Path(default_name(settings))
    check_pictures(path, settings.images, overwrite=args.overwrite, bits=args.bits)
    if args.save_latents is not None:
        check_output([args.save_latents], suffix=".safetensors", overwrite=args.overwrite)
    if args.report is not None:
        check_output([args.report], suffix=".html", overwrite=args.overwrite)

    pipe = load_pipeline(args, settings)
    result = pipe.run(settings, progress=sys.stderr.isatty(), record=args.report is not None)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    for saved in result.save(path, overwrite=args.overwrite, metadata=not args.no_metadata, bits=args.bits):
        print(saved)
    if args.save_latents is not None:
        print(result.state().save(args.save_latents, overwrite=args.overwrite))
    if args.report is not None:
        print(result.report(args.report, overwrite=args.overwrite))
    return 0


def settings_of(args: argparse.Namespace) -> "Settings":
    """The settings that were asked for, checked as far as they can be without the model.

    Raises:
        ValueError: there is no prompt, or there are two sources of prompts; and as `Settings` and
            `read_settings`.
    """
    from textenc.prompt import as_prompts

    from ..errors import SettingsError
    from ..metadata import read_settings
    from ..settings import Settings

    given = given_settings(args)
    if "negative" in given:
        (given["negative"],) = as_prompts(given["negative"])
    if args.prompt is not None and args.prompts_file is not None:
        raise SettingsError("there is a prompt and a file of prompts: give one of them")
    if args.prompt is not None:
        given["prompts"] = as_prompts(args.prompt)
    if args.prompts_file is not None:
        given["prompts"] = as_prompts(read_prompts(args.prompts_file))
    if args.from_image is not None:
        return replace(read_settings(args.from_image), **given)
    if "prompts" not in given:
        raise SettingsError('what should be drawn? Give a prompt: sd35 generate "a red circle on the left"')
    return Settings(**given)


def read_prompts(name: str) -> list[str]:
    """The lines of a file of prompts, or of stdin for "-", without the empty ones.

    Raises:
        SettingsError: there is no prompt in it, or it is no UTF-8 text.
    """
    from ..errors import SettingsError

    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise SettingsError(f"there is no prompt in {name}")
    return prompts


def default_name(settings: "Settings") -> str:
    """A file name from the first prompt and the seed: a-red-circle-0.png."""
    words = re.findall(r"\w+", settings.prompts[0].text.lower())
    return f"{'-'.join(words)[:40].rstrip('-') or 'picture'}-{settings.seed}.png"
