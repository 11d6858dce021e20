"""Help, exit statuses, and errors in one line."""

import subprocess
import sys

import pytest

from sd35.cli import entry


def test_help_of_every_command(sd35) -> None:
    status, out, _ = sd35("--help")
    assert status == 0
    for name in entry.COMMANDS:
        assert name in out
        status, out_of_command, _ = sd35(name, "--help")
        assert status == 0
        assert out_of_command.startswith(f"usage: sd35 {name}")


def test_options_are_hyphenated(sd35) -> None:
    for name in entry.COMMANDS:
        options = [word for word in sd35(name, "--help")[1].split() if word.startswith("--")]
        assert not [option for option in options if "_" in option]


def test_a_default_is_told_once(sd35) -> None:
    for name in entry.COMMANDS:
        words = " ".join(sd35(name, "--help")[1].split())
        assert "(default (" not in words
        assert "(default )" not in words


@pytest.mark.parametrize(
    "arguments", [[], ["draw"], ["generate", "--steps", "many"], ["inspect"], ["generate", "a", "star"]]
)
def test_what_is_no_command_line_shows_how_to_write_one(sd35, arguments) -> None:
    status, out, err = sd35(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("sd35")
    assert "error: " in err
    assert "--help" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("no such thing"), 2, "sd35 inspect: error: no such thing\n"),
        (FileExistsError("it exists"), 2, "sd35 inspect: error: it exists\n"),
        (OSError(28, "No space left on device", "a.png"), 2, "error: No space left on device: a.png\n"),
        (ArithmeticError("NaN at step 3"), 1, "sd35 inspect: error: NaN at step 3\n"),
        (RuntimeError("out of memory"), 1, "error: RuntimeError: out of memory (--traceback shows where)\n"),
        (KeyboardInterrupt(), 130, "sd35 inspect: interrupted\n"),
    ],
)
def test_errors_are_one_line_and_a_status(sd35, monkeypatch, error, status, line) -> None:
    def fail(args) -> int:
        raise error

    monkeypatch.setattr(entry.COMMANDS["inspect"], "run", fail)
    got, out, err = sd35("inspect", "tiny")
    assert (got, out) == (status, "")
    assert err.endswith(line)
    assert err.count("\n") == 1


def test_a_traceback_can_be_asked_for(sd35, monkeypatch) -> None:
    def fail(args) -> int:
        raise ValueError("here")

    monkeypatch.setattr(entry.COMMANDS["inspect"], "run", fail)
    with pytest.raises(ValueError, match="here"):
        sd35("inspect", "tiny", "--traceback")


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sd35", "inspect", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: sd35 inspect")
