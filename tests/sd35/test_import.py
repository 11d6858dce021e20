"""Importing the package costs little and changes nothing."""

import subprocess
import sys

import pytest

import sd35

HEAVY = {"torch", "numpy", "PIL", "tqdm"}


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_neither_the_package_nor_its_command_line_imports_torch() -> None:
    assert run(f"import sys, sd35.cli; print({HEAVY} & set(sys.modules))") == "set()\n"


def test_every_public_name_is_there() -> None:
    assert set(sd35.__all__) <= set(dir(sd35))
    for name in sd35.__all__:
        assert getattr(sd35, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sd35.nothing
