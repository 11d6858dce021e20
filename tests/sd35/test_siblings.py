"""A file of the user's that bears the name of a package is told, by name."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("shadow", ["flow.py", "vae/__init__.py", "textenc"])
def test_what_is_shadowed_by_what(tmp_path, shadow) -> None:
    path = tmp_path / shadow
    path.parent.mkdir(exist_ok=True)
    path.write_text("x = 1\n") if shadow.endswith(".py") else path.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[1:1] = [{str(ROOT)!r}]; import sd35"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    name = shadow.split(".")[0].split("/")[0]
    if shadow == "textenc":  # a folder without code gives way to a package
        assert done.returncode == 0
        return
    assert (
        f"ImportError: sd35 needs its own package {name!r}, in {ROOT / name}, and Python finds" in done.stderr
    )
