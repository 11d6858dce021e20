"""docs/pictures.md: its snippets run, and its table of numbers is that of the code."""

import doctest
import re
from pathlib import Path

import torch

from sd35.presets import NUMBERS

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
        if line.startswith("| SD3")
    }
    for column, whose in enumerate(("reference", "diffusers")):
        for model, numbers in NUMBERS[whose].items():
            said = rows[model][column]
            if said.strip().startswith("the same"):
                said = rows[model][0]
            assert f"{numbers['steps']} steps, {numbers['solver']}" in said.replace(
                "steps, euler", "steps, euler"
            )
            assert (
                "no guidance" if numbers["guidance_scale"] == 1 else f"scale {numbers['guidance_scale']:g}"
            ) in said
            assert ("skip-layer" in said) == ("guidance" in numbers)
