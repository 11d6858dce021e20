"""Draw a picture again under another prompt, keeping the rest.

Its own prompt and settings come from the picture where it carries them; else --source-prompt says what
is to be seen in it. Steps, schedule and solver given here are those of both halves; seed, guidance scale and
negative prompt those of the second.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_model, add_sampling, given_settings, load_pipeline
from .invert import read_input

if TYPE_CHECKING:
    from ..editing import Control
    from ..settings import Settings

SUMMARY = "draw a picture again under another prompt"

OF_TARGET = ("seed", "guidance_scale", "negative")
"""Settings that are given for the second half alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument("input", type=Path, metavar="FILE", help="a picture, or latents saved as safetensors")
    parser.add_argument("prompt", help="of the picture that is wanted")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help="the edited picture")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--bits", type=int, default=8, help="8 (the default) or 16 bits a channel")
    group = parser.add_argument_group("editing")
    group.add_argument(
        "--source-prompt", metavar="PROMPT", help="of the picture as it is, where it does not carry its own"
    )
    group.add_argument(
        "--source-guidance-scale", type=float, metavar="SCALE", help="that of the picture by default"
    )
    group.add_argument(
        "--method",
        default="inversion",
        help="inversion (the default), flow_edit or rf_inversion",
    )
    group.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="how much of the schedule to run, above 0 to 1 (the default); less keeps more of the picture",
    )
    group.add_argument(
        "--accuracy",
        type=float,
        help="inversion: of the exact inverse (default 1e-4); smaller costs more evaluations",
    )
    group.add_argument(
        "--average",
        type=int,
        default=1,
        metavar="N",
        help="flow_edit: noises a step averages over (default 1)",
    )
    group.add_argument(
        "--gamma", type=float, help="rf_inversion: pull toward typical noise, 0 to 1 (default 0.5)"
    )
    group.add_argument(
        "--eta", type=float, help="rf_inversion: pull toward the picture, 0 to 1 (default 0.9)"
    )
    group.add_argument(
        "--eta-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="rf_inversion: noise levels at which it pulls toward the picture (default 0.75 1)",
    )
    add_sampling(parser)
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Check what was asked for, load, edit and save; print the paths of the pictures."""
    from ..editing import check_edit, edit, reaches_noise
    from ..result import check_pictures

    data, saved, companion, _ = read_input(args.input)
    source, target = settings_of(args, saved)
    check_pictures(args.output, source.images, overwrite=args.overwrite, bits=args.bits)
    if not reaches_noise(args.method, args.strength) or source != saved:
        companion = None
    options = {"control": control_of(args), "average": args.average, "accuracy": args.accuracy}
    check_edit(source, args.method, args.strength, companion, **options)  # before anything is loaded
    # Undoing repeats the very velocities of the generation; everything else is better off in float32.
    pipe = load_pipeline(args, source, dtype="float32" if companion is None else None)
    edited = edit(
        pipe,
        data,
        source,
        target,
        method=args.method,
        strength=args.strength,
        companion=companion,
        **options,
        progress=sys.stderr.isatty(),
    )
    for note in edited.notes:
        print(f"note: {note}", file=sys.stderr)
    for path in edited.save(args.output, overwrite=args.overwrite, bits=args.bits):
        print(path)
    return 0


def settings_of(args: argparse.Namespace, saved: "Settings | None") -> "tuple[Settings, Settings]":
    """The settings of both halves: what leads to the picture, and what is wanted.

    Raises:
        SettingsError: nothing says what is in the picture; and as `Settings`.
    """
    from textenc.prompt import as_prompts

    from ..editing import aimed
    from ..errors import SettingsError
    from ..settings import Settings

    given = given_settings(args)
    if "negative" in given:
        (given["negative"],) = as_prompts(given["negative"])
    of_both: dict[str, Any] = {name: value for name, value in given.items() if name not in OF_TARGET}
    of_source = dict(of_both)
    if args.source_prompt is not None:
        of_source["prompts"] = as_prompts(args.source_prompt)
    if args.source_guidance_scale is not None:
        of_source["guidance_scale"] = args.source_guidance_scale
    if saved is None and "prompts" not in of_source:
        raise SettingsError(f"{args.input} carries no settings: say with --source-prompt what is in it")
    source = Settings(**of_source) if saved is None else replace(saved, **of_source)
    target = aimed(source, as_prompts(args.prompt), given.get("seed"), given.get("guidance_scale"))
    return source, replace(target, negative=given.get("negative", target.negative))


def control_of(args: argparse.Namespace) -> "Control | None":
    """What rf_inversion bends by; None if nothing was said of it."""
    from ..editing import Control

    interval = None if args.eta_interval is None else tuple(args.eta_interval)
    given = {"toward_noise": args.gamma, "toward_data": args.eta, "interval": interval}
    given = {name: value for name, value in given.items() if value is not None}
    return Control(**given) if given else None
