"""Train the embedded model from scratch: autoencoder, text encoders and transformer, on pictures drawn here.

Seeded, and resumable: run the same command again and it goes on where it stopped.
"""

import argparse
from pathlib import Path

SUMMARY = "train the model that comes with this project"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument("model", choices=["tiny"], help="which model")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the model and its state"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default 0)")
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda, mps or auto")


def run(args: argparse.Namespace) -> int:
    """Train."""
    from ..device import as_device
    from ..tiny.recipe import train

    train(args.output, seed=args.seed, device=str(as_device(args.device)))
    return 0
