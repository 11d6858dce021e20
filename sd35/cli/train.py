"""Train the embedded model from scratch: autoencoder, text encoders and transformer, on pictures drawn here.

Its plan is one of minutes: eight on a fast card made the model that comes with this project, and a processor
needs a day to see as many pictures. Weights are written to DIR/training on the way.
"""

import argparse
from pathlib import Path

SUMMARY = "train the model that comes with this project"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument("model", choices=["tiny"], help="which model")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="new folder for the model and its log"
    )
    parser.add_argument("--minutes", type=float, required=True, help="how long to train, all in all")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="train an earlier run's transformer on")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default 0)")
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda, mps or auto")


def run(args: argparse.Namespace) -> int:
    """Train."""
    from ..device import as_device
    from ..tiny.recipe import train

    train(
        args.output,
        minutes=args.minutes,
        seed=args.seed,
        device=str(as_device(args.device)),
        resume=args.resume,
    )
    return 0
