"""Every snippet of docs/flows.md runs, and shows what the page says."""

import doctest
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "flows.md"


def test_snippets():
    pytest.importorskip("scipy")
    source = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    test = doctest.DocTestParser().get_doctest(source, {}, PAGE.name, None, 0)
    assert len(test.examples) > 30
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not result.failed, "".join(report)


def test_its_picture_and_files_are_there():
    text = PAGE.read_text(encoding="utf-8")
    assert (PAGE.parent / "flows.png").is_file()
    named = re.findall(r"`((?:flow|examples|tests)/[\w/]*(?:\.py)?)`", text)
    assert len(named) > 8
    assert [name for name in named if not (PAGE.parents[1] / name).exists()] == []
