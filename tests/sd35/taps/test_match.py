"""Choosing taps by name."""

import pytest

from sd35.taps import TapError
from sd35.taps.match import match

NAMES = ["output", "blocks.0.x", "blocks.1.x", "blocks.1.norm", "blocks.10.x", "blocks.1.attn.ln_q", "head.0"]


@pytest.mark.parametrize(
    ("glob", "chosen"),
    [
        ("blocks.0.x", ["blocks.0.x"]),
        ("blocks.*.x", ["blocks.0.x", "blocks.1.x", "blocks.10.x"]),
        ("blocks.?.x", ["blocks.0.x", "blocks.1.x"]),
        ("blocks.[!0].*", ["blocks.1.x", "blocks.1.norm"]),
        ("blocks.[01].x", ["blocks.0.x", "blocks.1.x"]),
        ("**.ln_q", ["blocks.1.attn.ln_q"]),
        ("blocks.1.**", ["blocks.1.x", "blocks.1.norm", "blocks.1.attn.ln_q"]),
        ("**", NAMES),
    ],
)
def test_globs(glob, chosen):
    assert match(NAMES, [glob]) == {glob: chosen}


def test_a_star_stays_within_one_segment():
    with pytest.raises(TapError):
        match(NAMES, ["blocks.*.ln_q"])


def test_lists_and_predicates():
    def is_norm(name: str) -> bool:
        return name.endswith("norm")

    assert match(NAMES, [["output", "head.*"], is_norm]) == {
        "output": ["output"],
        "head.*": ["head.0"],
        "is_norm": ["blocks.1.norm"],
    }


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("block.1.x", "blocks.1.x"), ("blocks.*.atn.ln_q", "blocks.*.attn.ln_q"), ("blocks.1", "blocks.1.norm")],
)
def test_names_near_matches(wrong, meant):
    with pytest.raises(TapError, match="matches no tap; did you mean") as error:
        match(NAMES, [wrong])
    assert meant in str(error.value)


def test_nothing_matched():
    with pytest.raises(TapError, match="no tap was asked for"):
        match(NAMES, [])
    with pytest.raises(TapError, match="matches no tap"):
        match(NAMES, [lambda name: False])
    with pytest.raises(TapError, match=r"'zzz' matches no tap$"):
        match(NAMES, ["zzz"])
