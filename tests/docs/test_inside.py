"""The page docs/inside.md: its snippets run, one after the other, and what they assert holds."""

import re
from pathlib import Path

from sd35.size import Size

PAGE = (Path(__file__).parents[2] / "docs" / "inside.md").read_text(encoding="utf-8")


def test_every_snippet_runs(monkeypatch) -> None:
    """On small pictures: none of them says how large they are."""
    monkeypatch.setattr("sd35.found.native_size", lambda transformer: Size(64, 64))
    snippets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(snippets) == 7
    namespace: dict = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/inside.md", "exec"), namespace)
