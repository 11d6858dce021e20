"""The embedded model in minutes on a card, from the repository's root and without installation.

    python -m sd35.tiny.gpu --minutes 8 --output FOLDER      # train; writes pieces below 16 MB, and a log
    python -m sd35.tiny.gpu --minutes 8 --output FOLDER --resume tiny --autoencoder 0.4   # from what there is
    python -m sd35.tiny.gpu --join FOLDER -o weights/tiny    # put the pieces together

`sd35 train tiny` is the same training for who has no such limits.
"""

import time

BEGAN = time.monotonic()  # before torch is imported, which takes seconds that count

import argparse  # noqa: E402
from pathlib import Path  # noqa: E402

from .options import add_going_on  # noqa: E402


def main() -> None:
    """Train, or join."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder to write to")
    parser.add_argument("--minutes", type=float, default=8.0, help="all in all (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="default: a card if there is one")
    add_going_on(parser)
    parser.add_argument("--small", action="store_true", help="tiny batches, to try all of it in a minute")
    parser.add_argument("--join", type=Path, metavar="FOLDER", help="put together what was trained there")
    arguments = parser.parse_args()
    if arguments.join is not None:
        from .pieces import join

        join(arguments.join, arguments.output)
        return
    from ..device import as_device
    from .recipe import SMALL, train_pieces

    train_pieces(
        arguments.output,
        minutes=arguments.minutes,
        seed=arguments.seed,
        device=str(as_device(arguments.device)),
        resume=arguments.resume,
        autoencoder=arguments.autoencoder,
        sizes=SMALL if arguments.small else None,
        began=BEGAN,
    )


if __name__ == "__main__":
    main()
