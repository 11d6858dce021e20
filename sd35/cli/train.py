"""Train on a folder of pictures with captions; or make the embedded model from nothing.

A run writes its result, its state and log.csv into the output folder, and goes on from the state with
--resume, bit for bit. docs/training.md walks through it.
"""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from ..tiny.options import add_going_on
from ..train import methods
from .model import SOURCES, add_source
from .options import add_settings, given_settings

SUMMARY = "fine-tune a model, or make the one that comes with this project"

MODES = {
    "lora": ("train a LoRA", "LoraTraining", "sd35.train.lora", "train_lora"),
    "dreambooth": (
        "teach one subject and keep its class",
        "DreamBoothTraining",
        "sd35.train.dreambooth",
        "train_dreambooth",
    ),
    "full": ("train all weights of a transformer", "FullTraining", "sd35.train.full", "train_full"),
    "controlnet": (
        "train a ControlNet on pairs of pictures",
        "ControlNetTraining",
        "sd35.train.controlnet",
        "train_controlnet",
    ),
    "vae": ("train an autoencoder", "VaeTraining", "sd35.train.vae", "train_vae"),
    "reflow": (
        "straighten a flow by its own pairs: --data is a file of prompts",
        "ReflowTraining",
        "sd35.train.reflow",
        "train_reflow",
    ),
}
"""Way of training to its help, the name of its settings, and where its function is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    modes = parser.add_subparsers(dest="mode", metavar="WHAT", required=True)
    for name, (told, settings, _, _) in MODES.items():
        mode = modes.add_parser(name, help=told, description=told)
        mode.set_defaults(called=mode.prog)
        way = getattr(methods, settings)
        _add_places(mode, name)
        add_settings(mode, "training", way, but=way.without)
        _add_traceback(mode)
        add_source(mode, dtype="float32 on a CPU, elsewhere bfloat16")
    _add_tiny(modes.add_parser("tiny", help="make the embedded model from nothing"))


def run(args: argparse.Namespace) -> int:
    """Train; print the path of what was made."""
    if args.mode == "tiny":
        return _run_tiny(args)
    _, settings, module, name = MODES[args.mode]
    train: Any = getattr(import_module(module), name)
    sources = {name: place for name in SOURCES if (place := getattr(args, name)) is not None}
    places: dict[str, Any] = {
        "sources": sources,
        "validation_data": getattr(args, "validation_data", None),
        "cache": getattr(args, "cache", None),
        "resume": args.resume,
        "device": args.device,
        "dtype": args.dtype,
        "progress": True,
    }
    given = given_settings(args, getattr(methods, settings))
    from ..train.ending import joined

    given |= {name: vars(args)[name] for name in ("class_data", "control_data") if name in vars(args)}
    with joined(args.called) as is_main:
        path = train(
            "tiny" if args.model is None else args.model, args.data, args.output, places=places, **given
        )
    if is_main:
        print(path)
    return 0


def _add_places(parser: argparse.ArgumentParser, way: str) -> None:
    """What is read and written."""
    control = " --control-data DIR" if way == "controlnet" else ""
    parser.usage = f"%(prog)s --data PATH{control} -o DIR [options]"
    what = "prompts, one in each line" if way == "reflow" else "pictures, with captions NAME.txt, ..."
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help=what)
    if way == "controlnet":
        parser.add_argument(
            "--control-data",
            type=Path,
            required=True,
            metavar="DIR",
            help="control pictures, of the same names",
        )
    if way == "dreambooth":
        parser.add_argument(
            "--class-data", type=Path, metavar="DIR", help="class pictures (default: OUTPUT/class, drawn)"
        )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    if way not in ("vae", "reflow"):
        parser.add_argument(
            "--validation-data",
            type=Path,
            metavar="DIR",
            help="pictures to validate with (else of --data)",
        )
    if way != "vae":
        parser.add_argument(
            "--cache",
            type=Path,
            metavar="DIR",
            help="latents and encodings (default: OUTPUT/cache)",
        )


def _add_traceback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--traceback", action="store_true", default=argparse.SUPPRESS, help="show where an error arose"
    )


def _add_tiny(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(called=parser.prog)
    parser.description = (
        "Train the embedded model from scratch: autoencoder, text encoders and transformer, on pictures that "
        "are drawn here. Its plan is one of minutes: eight on a fast card made the model of this project, "
        "and a processor needs a day to see as many pictures. Weights are written to DIR/training on the way."
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="new folder for the model and its log"
    )
    parser.add_argument("--minutes", type=float, required=True, help="how long to train, all in all")
    add_going_on(parser)
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default 0)")
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda, mps or auto")
    _add_traceback(parser)


def _run_tiny(args: argparse.Namespace) -> int:
    from ..device import as_device
    from ..tiny.recipe import train

    train(
        args.output,
        minutes=args.minutes,
        seed=args.seed,
        device=str(as_device(args.device)),
        resume=args.resume,
        autoencoder=args.autoencoder,
    )
    return 0
