"""The tour of docs/tour.md: every snippet runs, and shows what the page says."""

import doctest
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
BLOCKS = [(match.start(), match[1]) for match in re.finditer(r"```python\n(.*?)```", TOUR, re.DOTALL)]


@pytest.fixture(scope="module")
def namespace() -> dict:
    """What the snippets share: each goes on where the one before it ended."""
    return {}


def line_of(position: int) -> int:
    return TOUR.count("\n", 0, position) + 1


@pytest.mark.parametrize(
    ("source", "line"),
    [(source, line_of(position) + 1) for position, source in BLOCKS],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_snippet(source: str, line: int, namespace) -> None:
    test = doctest.DocTestParser().get_doctest(source, {}, f"tour.md:{line}", None, line)
    test.globs = namespace  # not a copy
    report: list[str] = []
    with torch.no_grad():
        result = doctest.DocTestRunner(verbose=False).run(test, out=report.append, clear_globs=False)
    assert result.attempted > 0
    assert not result.failed, "".join(report)


def test_snippets_are_short() -> None:
    """Three statements or so: a tour, not a program."""
    lengths = [len(doctest.DocTestParser().get_examples(source)) for _, source in BLOCKS]
    assert len(lengths) >= 15
    assert max(lengths) <= 4


def test_files_and_sections_are_there() -> None:
    named = set(re.findall(r"`((?:textenc|mmdit|vae|flow|weights|sd35)/[\w/]*(?:\.py)?)`", TOUR))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []
    headings = re.findall(r"^## (.*)$", TOUR, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert [link for link in re.findall(r"\]\(#([^)]*)\)", TOUR) if link not in anchors] == []
