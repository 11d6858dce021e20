"""docs/pictures.md: its snippets run, and its table of numbers is that of the code."""

import doctest
import re
from pathlib import Path

import torch

from sd35.presets import NUMBERS, Variant
from sd35.tasks.generate import Generate

PAGE = (Path(__file__).parents[2] / "docs" / "pictures.md").read_text(encoding="utf-8")


def test_snippets_run() -> None:
    source = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    test = doctest.DocTestParser().get_doctest(source, {}, "pictures.md", None, 0)
    report: list[str] = []
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    with torch.no_grad():
        result = doctest.DocTestRunner(verbose=False, optionflags=flags).run(test, out=report.append)
    assert result.attempted > 10
    assert not result.failed, "".join(report)


def test_the_numbers_are_those_of_the_code() -> None:
    rows = {
        line.split("|")[1].strip().lower(): line.split("|")[2:4]
        for line in PAGE.splitlines()
        if line.startswith(("| SD3", "| tiny"))
    }
    for column, whose in enumerate(("reference", "diffusers")):
        for model in NUMBERS[whose]:
            found = Generate.of("a", variant=Variant(model), preset=whose).settings
            said = rows[model][column]
            if said.strip().startswith("the same"):
                said = f"{rows[model][0]}, {said}"
            assert f"{found.steps} steps, {found.solver}" in said
            scale = found.guidance_scale
            assert ("no guidance" if scale == 1 else f"scale {scale:g}") in said
            assert ("skip-layer" in said) == (found.guidance.skip_layer is not None)
            low = found.guidance.interval[0]
            assert (f"where σ is {low:g} or more" in said and "everywhere" not in said) == (low > 0)
