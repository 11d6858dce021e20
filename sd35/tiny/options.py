"""Options that every way of making the embedded model has, without torch."""

import argparse
from pathlib import Path


def add_going_on(parser: argparse.ArgumentParser) -> None:
    """Describe how a model that is there is trained on; `recipe.train` takes both."""
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="train the model of this folder on, or tiny",
    )
    parser.add_argument(
        "--autoencoder",
        type=float,
        metavar="SHARE",
        help="of the time for the autoencoder (default 0.4 from nothing, 0 with --resume)",
    )
