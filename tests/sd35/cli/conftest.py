"""The command line, called in this process."""

from pathlib import Path

import pytest

from sd35.cli import main


@pytest.fixture
def sd35(capsys):
    """sd35("generate", "a", ...) returns the exit status, what went to stdout, and what went to stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(one) for one in arguments])
        except SystemExit as exit_:  # argparse
            status = int(exit_.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run
