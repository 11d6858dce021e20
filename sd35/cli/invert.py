"""Find the noise that a picture was drawn from, and print what is lost on the way.

Prompt and settings come from the picture itself where it carries them; options beside it change what they
name. Saved latents (sd35 generate --save-latents) return better than any picture, and exactly where they come
from a reversible solver.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_model, add_sampling, given_settings, load_pipeline, options_of

if TYPE_CHECKING:
    from torch import Tensor

    from flow import Companion

    from ..settings import Settings

IMAGE_CHANNELS = 3
SUMMARY = "find the noise that a picture was drawn from"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument("input", type=Path, metavar="FILE", help="a picture, or latents saved as safetensors")
    parser.add_argument("prompt", nargs="?", help="of the picture, where it does not carry its own")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the noise, as safetensors",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    group = parser.add_argument_group("inversion")
    group.add_argument(
        "--method",
        default="exact",
        help="exact (the default, which undoes reversible solvers), naive, fireflow, ...; a wrong name lists "
        "them all",
    )
    group.add_argument(
        "--accuracy", type=float, help="of the exact method (default 1e-4); smaller costs more evaluations"
    )
    group.add_argument(
        "--method-option",
        action="append",
        metavar="NAME=VALUE",
        help="another option of the method, as iterations=4; may be repeated",
    )
    group.add_argument(
        "--refine-steps",
        type=int,
        default=0,
        metavar="N",
        help="improve the latents of a picture by N steps of optimisation (default 0)",
    )
    group.add_argument("--per-step", action="store_true", help="also print how each step went")
    group.add_argument("--no-measure", action="store_true", help="do not draw again from the noise")
    add_sampling(parser)
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Invert, write the noise, print the table of losses."""
    from ..errors import SettingsError
    from ..files import check_output
    from ..invert import check_method, check_refining, invert, undoes

    check_output([args.output], suffix=".safetensors", overwrite=args.overwrite)
    data, saved, companion, noise = read_input(args.input)
    settings = settings_of(args, saved)
    options = options_of(args.method_option)
    if args.accuracy is not None:
        options["accuracy"] = args.accuracy
    undoing = undoes(args.method, companion)
    if args.accuracy is not None and (args.method != "exact" or undoing):
        raise SettingsError("--accuracy is of the exact method, and another way is taken here: leave it out")
    check_method(settings, args.method, options, companion)
    check_refining(data.shape[1] == IMAGE_CHANNELS, args.refine_steps)
    # Undoing repeats the very velocities of the generation; everything else is better off in float32.
    pipe = load_pipeline(args, settings, dtype=None if undoing else "float32")
    inverted = invert(
        pipe,
        data,
        settings,
        saved=saved,
        method=args.method,
        options=options,
        companion=companion,
        noise=noise if settings.seed is None else None,
        refine_steps=args.refine_steps,
        measure=not args.no_measure,
        progress=sys.stderr.isatty(),
    )
    for note in inverted.notes:
        print(f"note: {note}", file=sys.stderr)
    print(inverted)
    if args.per_step:
        print(inverted.report)
    print(f"{inverted.report.evaluations} evaluations, method {inverted.report.method}")
    print(inverted.state().save(args.output, overwrite=args.overwrite))
    return 0


def read_input(path: Path) -> "tuple[Tensor, Settings | None, Companion | None, Tensor | None]":
    """What is to be inverted, and what it carries: its settings, a companion, the noise that it began with.

    Raises:
        OSError: there is no such file.
        ValueError: it is neither a picture nor a saved state with latents.
    """
    from vae.image import read

    from ..errors import SettingsError
    from ..metadata import read_settings
    from ..state import State

    if path.suffix == ".safetensors":
        state = State.load(path)
        if state.latents is None:
            raise SettingsError(f"{path} holds noise and no latents: there is nothing to invert")
        return state.latents, state.settings, state.companion, state.noise
    image = read(path)
    try:
        return image, read_settings(path), None, None
    except SettingsError:  # a picture from elsewhere: the options have to tell
        return image, None, None, None


def settings_of(args: argparse.Namespace, saved: "Settings | None") -> "Settings":
    """The settings to invert with: the saved ones, but for what the arguments name."""
    from textenc.prompt import as_prompts

    from ..errors import SettingsError
    from ..settings import Settings

    given = given_settings(args)
    if "negative" in given:
        (given["negative"],) = as_prompts(given["negative"])
    if args.prompt is not None:
        given["prompts"] = as_prompts(args.prompt)
    if saved is None:
        if "prompts" not in given:
            raise SettingsError(f"{args.input} carries no settings: give the prompt that it was drawn from")
        given.setdefault("seed", None)
        return Settings(**given)
    return replace(saved, **given)
