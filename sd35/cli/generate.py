"""Draw pictures of a prompt, or of every line of a file.

The picture carries its settings: `--from-image picture.png` draws it again, and options beside it
change what they name.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..fields import table
from ..inputs import PictureSettings
from ..presets import NUMBERS, UNKNOWN, Variant
from ..settings import Settings
from .control import OF_ALL, add_control, given_control
from .model import add_model, found_model, load_pipeline
from .options import add_prompts, add_settings, given_settings, prompt_of, tell

if TYPE_CHECKING:
    from ..tasks.generate import Generate

SUMMARY = "draw pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.usage = "%(prog)s PROMPT [options]"
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
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"whose numbers stand for what is not said: {' or '.join(NUMBERS)} (default reference)",
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
    output.add_argument(
        "--hash-values",
        action="store_true",
        help="write a hash of all weights into the picture, not of headers and samples; reads all files",
    )
    output.add_argument("--bits", type=int, default=8, help="8 (the default) or 16 bits a channel")
    add_prompts(parser)
    add_settings(parser, "pictures in", PictureSettings, but=OF_ALL)
    add_control(parser)
    add_settings(parser, "sampling", Settings, but=table(PictureSettings))
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Check what was asked for, load, draw and save; print the paths of the pictures."""
    from ..report import Recorder
    from ..saved.png import check_keeping, check_pictures
    from ..saved.write import check_output
    from ..tasks.generate import Generation
    from ..tasks.inpaint import check_inpainting

    given = Asked.of(args)
    settings = given.request().settings  # what can be refused without looking for the model is refused now
    path = args.output or Path(default_name(settings))
    check_pictures(path, settings.images, overwrite=args.overwrite, bits=args.bits)
    if args.keep_latents:
        check_keeping(settings, metadata=not args.no_metadata)
    if args.save_latents is not None:
        check_output([args.save_latents], suffix=".safetensors", overwrite=args.overwrite)
    if args.report is not None:
        check_output([args.report], suffix=".html", overwrite=args.overwrite)

    found = found_model(args, settings)
    request = given.request(found.variant)
    check_inpainting(found.mmdit, request.inputs)
    pipe = load_pipeline(args, request.settings, found=found)
    generation = Generation(pipe, request, bar="" if sys.stderr.isatty() else None)
    tell(generation.notes)
    recording = None if args.report is None else Recorder(pipe, generation).run()
    result = generation.run() if recording is None else recording.result
    for saved in result.save(
        path,
        overwrite=args.overwrite,
        metadata=not args.no_metadata,
        bits=args.bits,
        keep_latents=args.keep_latents,
    ):
        print(saved)
    if args.save_latents is not None:
        print(*result.state().save(args.save_latents, overwrite=args.overwrite))
    if recording is not None and args.report is not None:
        print(*recording.save(args.report, overwrite=args.overwrite))
    return 0


@dataclass(frozen=True)
class Asked:
    """What was asked for on the command line."""

    prompt: Any
    given: Mapping[str, Any]
    base: Settings | None
    noise: Path | None
    preset: str | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Asked":
        """Read it, with the prompts and the settings that files hold.

        Raises:
            ValueError: there are two sources of prompts; and as `read_settings`.
        """
        from ..errors import SettingsError
        from ..saved.png import read_settings

        prompt = prompt_of(args)
        if prompt is not None and args.prompts_file is not None:
            raise SettingsError("there is a prompt and a file of prompts: give one of them")
        if args.prompts_file is not None:
            prompt = read_prompts(args.prompts_file)
        base = None if args.from_image is None else read_settings(args.from_image)
        given = {**given_settings(args, Settings), **given_control(args)}
        return cls(prompt, given, base, args.noise, args.preset)

    def request(self, variant: Variant = UNKNOWN) -> "Generate":
        """The request, checked as far as it can be without the model's weights; see `Generate.of`."""
        from ..tasks.generate import Generate

        return Generate.of(
            self.prompt,
            self.given,
            base=self.base,
            noise=self.noise,
            variant=variant,
            preset=self.preset,
        )


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
