"""Importing the package costs little and changes nothing."""

import re
import subprocess
import sys
from pathlib import Path

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
    names = [name for names in sd35.HOMES.values() for name in names]
    assert set(names) <= set(dir(sd35))
    assert set(names) == set(
        re.findall(r"import (\w+) as \1$", Path(sd35.__file__).read_text(), re.MULTILINE)
    )
    for name in names:
        assert getattr(sd35, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sd35.nothing
