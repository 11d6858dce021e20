"""The command line: `sd35 COMMAND`, one module for each command.

A module here has a `SUMMARY`, an `add_arguments(parser)` and a `run(args)` that returns the exit status. What
takes time to import is imported in `run`, so that `--help` and mistakes in the arguments answer at once.
"""

from .entry import main

__all__ = ["main"]
