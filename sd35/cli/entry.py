"""The parser of the whole, and what becomes of errors: one line and an exit status."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import SettingsError
from ..version import release
from . import (
    attention,
    bench,
    calibrate,
    edit,
    generate,
    inspect,
    invert,
    listing,
    quantise,
    train,
    verify,
    watermark,
)

COMMANDS = {
    "generate": generate,
    "invert": invert,
    "edit": edit,
    "inspect": inspect,
    "attention": attention,
    "verify": verify,
    "train": train,
    "quantise": quantise,
    "bench": bench,
    "calibrate": calibrate,
    "watermark": watermark,
    "list": listing,
}

OK, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: done; something went wrong; the user asked for what cannot be; Ctrl-C (128 + SIGINT)."""

EPILOG = f"""\
sd35 generate "a star" -o star.png draws a picture; sd35 COMMAND --help tells the rest.

exit status:
  {OK:<4}done
  {FAILED:<4}it failed on the way; or sd35 verify or inspect found a fault, sd35 watermark find no mark
  {MISTAKE:<4}it was asked for what cannot be done: a wrong option, a missing or damaged file
  {INTERRUPTED:<4}it was interrupted (Ctrl-C)"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like those of the commands themselves."""

    def error(self, message: str) -> NoReturn:
        """Print what was wrong, and where the options are told, and end."""
        self.exit(MISTAKE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None takes the process's.

    Returns:
        The exit status.
    """
    _open_streams()
    argv = sys.argv[1:] if argv is None else argv
    args, unknown = _parser(next((word for word in argv if word in COMMANDS), None)).parse_known_args(argv)
    name = args.called
    if unknown:
        quotes = "" if unknown[0].startswith("-") else "; words that belong together stand in quotes"
        Parser(prog=name).error(f"unrecognized arguments: {' '.join(unknown)}{quotes}")
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `sd35 inspect tiny | head`: nobody reads on, which is no failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if args.traceback:
            raise
        print(f"{name}: error: {_message(error)}", file=sys.stderr)
        return MISTAKE if isinstance(error, ValueError | OSError) else FAILED


def _open_streams() -> None:
    """Give stdout and stderr where the caller has closed them (`2>&-`); what is printed there is lost."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process runs
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser of all commands, of which the chosen one alone knows its arguments."""
    parser = Parser(
        prog="sd35",
        description="Stable Diffusion 3.5: draw pictures, look into models, measure.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sd35 {release()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:
            module.add_arguments(command)
        command.add_argument("--traceback", action="store_true", help="show where an error arose")
        command.set_defaults(run=module.run, called=f"sd35 {name}")
    return parser


def _message(error: Exception) -> str:
    """What went wrong, for a user: every error that is raised on purpose says it in its message.

    A setting that the message begins with is called by its option, which is what the user wrote.
    """
    if isinstance(error, SettingsError) and error.option:
        return error.option + str(error).removeprefix(error.setting)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, ValueError | OSError | ArithmeticError):
        return str(error)
    return f"{type(error).__name__}: {error} (--traceback shows where)"
