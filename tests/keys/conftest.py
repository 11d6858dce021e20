"""The key lists of the official checkpoints, expanded."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

Shapes = dict[str, tuple[int, ...]]


@cache
def expand(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Key to shape and dtype, from one of the compact lists that make.py writes."""
    tensors = {}
    for line in (Path(__file__).parent / f"{name}.txt").read_text().splitlines():
        key, size, dtype, *ranges = line.split(" ")
        shape = () if size == "scalar" else tuple(map(int, size.split("x")))
        for run in ranges[0].split(",") if ranges else []:
            first, _, last = run.partition("-")
            for number in range(int(first), int(last or first) + 1):
                tensors[key.replace("{}", str(number))] = (shape, dtype)
        if not ranges:
            tensors[key] = (shape, dtype)
    return tensors


@pytest.fixture(scope="session")
def manifest() -> Callable[[str], dict[str, tuple[tuple[int, ...], str]]]:
    """Call with a list's name to get key to (shape, dtype)."""
    return expand


@pytest.fixture(scope="session")
def shapes() -> Callable[..., Shapes]:
    """Call with a list's name, and a prefix to keep and strip, to get key to shape."""

    def read(name: str, prefix: str = "") -> Shapes:
        return {
            key.removeprefix(prefix): shape
            for key, (shape, _) in expand(name).items()
            if key.startswith(prefix)
        }

    return read
