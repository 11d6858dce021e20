"""Files: their names, their lengths, and what lies beside them."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mmdit", "vae", "textenc", "flow", "weights", "sd35")
LONGEST = 320


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_files_are_named_for_what_they_hold():
    banned = {"util", "utils", "helper", "helpers", "common", "misc"}
    everywhere = files(*PACKAGES, "tests", "examples", "benchmarks")
    assert [path for path in everywhere if banned & {*path.relative_to(ROOT).parts, path.stem}] == []


def test_files_are_short():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in files(*PACKAGES, "examples")
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_published(package):
    assert (ROOT / package / "py.typed").is_file()


def test_no_package_of_tests():
    """Tests import nothing from each other but through fixtures."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
