"""Draw pictures of a prompt, or of every line of a file.

The picture carries its settings: `--from-image picture.png` draws it again, and options beside it
change what they name.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..settings import Settings
from .model import add_model, load_pipeline
from .options import add_prompts, add_settings, given_settings, prompt_of, tell

if TYPE_CHECKING:
    from ..tasks.generate import Generate

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
    parser.add_argument(
        "--noise", type=Path, metavar="FILE", help="start from saved noise, as `sd35 invert -o` writes it"
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
        "--keep-latents",
        action="store_true",
        help="also keep the latents inside the picture, which then inverts as they do",
    )
    output.add_argument(
        "--report",
        type=Path,
        metavar="HTML",
        help="also write a page that shows the generation from inside: steps, attention, tokens, ...",
    )
    output.add_argument("--bits", type=int, default=8, help="8 (the default) or 16 bits a channel")
    add_prompts(parser)
    add_settings(parser, "sampling", Settings)
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Check what was asked for, load, draw and save; print the paths of the pictures."""
    from ..report import Recorder
    from ..saved.png import check_keeping, check_pictures
    from ..saved.write import check_output
    from ..tasks.generate import Generation

    request = request_of(args)
    settings = request.settings
    path = args.output or Path(default_name(settings))
    check_pictures(path, settings.images, overwrite=args.overwrite, bits=args.bits)
    if args.keep_latents:
        check_keeping(settings, metadata=not args.no_metadata)
    if args.save_latents is not None:
        check_output([args.save_latents], suffix=".safetensors", overwrite=args.overwrite)
    if args.report is not None:
        check_output([args.report], suffix=".html", overwrite=args.overwrite)

    pipe = load_pipeline(args, settings)
    generation = Generation(pipe, request, bar="" if sys.stderr.isatty() else None)
    recording = None if args.report is None else Recorder(pipe, generation).run()
    result = generation.run() if recording is None else recording.result
    tell(result.notes)
    for saved in result.save(
        path,
        overwrite=args.overwrite,
        metadata=not args.no_metadata,
        bits=args.bits,
        keep_latents=args.keep_latents,
    ):
        print(saved)
    if args.save_latents is not None:
        print(result.state().save(args.save_latents, overwrite=args.overwrite))
    if recording is not None and args.report is not None:
        print(recording.save(args.report, overwrite=args.overwrite))
    return 0


def request_of(args: argparse.Namespace) -> "Generate":
    """What was asked for, checked as far as it can be without the model.

    Raises:
        ValueError: there are two sources of prompts; and as `Generate.of` and `read_settings`.
    """
    from ..errors import SettingsError
    from ..saved.png import read_settings
    from ..tasks.generate import Generate

    prompt = prompt_of(args)
    if prompt is not None and args.prompts_file is not None:
        raise SettingsError("there is a prompt and a file of prompts: give one of them")
    if args.prompts_file is not None:
        prompt = read_prompts(args.prompts_file)
    base = None if args.from_image is None else read_settings(args.from_image)
    return Generate.of(prompt, given_settings(args, Settings), base=base, noise=args.noise)


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
    seed = "noise" if settings.seed is None else settings.seed
    return f"{'-'.join(words)[:40].rstrip('-') or 'picture'}-{seed}.png"
