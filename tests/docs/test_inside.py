"""The page docs/inside.md: its snippets run, one after the other, and what they assert holds."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "inside.md").read_text(encoding="utf-8")


def test_every_snippet_runs() -> None:
    snippets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(snippets) == 7
    namespace: dict = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/inside.md", "exec"), namespace)
