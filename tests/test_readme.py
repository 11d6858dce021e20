"""What README.md and docs/ show is run: Python blocks and `sd35` lines, in order, in an empty folder.

Left out are blocks and lines that need the network or weights that are not here: those that name a Hub
repository, pip, git, or a model other than the embedded one.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

import flow.inverse.exact
import sd35.found
from sd35.cli import main
from sd35.settings import Settings
from sd35.size import Size

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("bash", "sh", "console", "shell")

HUB = re.compile(r"\bstabilityai/|\bowner/|\bhf download\b|huggingface-cli")
NETWORK = re.compile(r"\b(pip|git|curl|wget)\b")
OTHER_MODEL = re.compile(r"load(?:_\w+)?\(\s*[\"'](?!tiny[\"'])")
OF_OTHERS = ("inside.md",)
"""Documents whose snippets a test of their own runs."""
TOO_LONG = ("train", "bench")
"""Commands of sd35 that take longer than a test may."""


@dataclass(frozen=True)
class Piece:
    """One thing to run, and where it stands."""

    language: str  # "python" or "bash"
    source: str
    line: int  # of the first line of `source`, counted from 1


def blocks_of(text: str) -> list[Piece]:
    """The fenced blocks of a Markdown text; "no-run" behind the language marks what needs a user's files."""
    blocks, start, language = [], 0, None
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        fence = re.match(r"\s*```\s*(\w*)(.*)", line)
        if fence and language is None:
            start, language = number + 1, "" if "no-run" in fence[2] else fence[1]
        elif fence and language is not None:
            blocks.append(Piece(language, "\n".join(lines[start - 1 : number - 1]), start))
            language = None
    return blocks


def commands_of(block: Piece) -> list[Piece]:
    """The commands of a shell block: one a line, with those that a backslash continues."""
    commands, pending, start = [], "", block.line
    for number, line in enumerate(block.source.splitlines(), start=block.line):
        start = start if pending else number
        pending += line.removesuffix("\\")
        if not line.endswith("\\"):
            commands.append(Piece("bash", pending.strip().removeprefix("$ "), start))
            pending = ""
    return [command for command in commands if command.source and not command.source.startswith("#")]


def runs_here(piece: Piece) -> bool:
    """Whether a piece needs nothing but this project."""
    if HUB.search(piece.source):
        return False
    if piece.language == "python":  # doctests are run, with their answers, by tests/docs
        return not OTHER_MODEL.search(piece.source) and not piece.source.startswith(">>>")
    words = shlex.split(piece.source, comments=True)
    if words[0] != "sd35" or NETWORK.search(piece.source) or (len(words) > 1 and words[1] in TOO_LONG):
        return False
    models = [after for word, after in pairwise(words) if word in ("-m", "--model")]
    models += [word.removeprefix("--model=") for word in words if word.startswith("--model=")]
    models += words[2:3] if words[1:2] in (["inspect"], ["verify"]) else []
    return all(model == "tiny" or model.startswith("-") for model in models)


def pieces_of(text: str) -> list[Piece]:
    """What is run of a document, in its order."""
    blocks = [block for block in blocks_of(text) if block.language in ("python", *SHELLS)]
    pieces = [piece for b in blocks for piece in ([b] if b.language == "python" else commands_of(b))]
    return [piece for piece in pieces if runs_here(piece)]


FEW, MORE, TRIALS, FINE = 3, 6, 2, 8
"""Steps at the most, and where a mark in the noise is to be found or steps are named; trials of the exact
inverse in each; levels of the table that a calibration is held to. That it runs is tested here; what is drawn
in all steps, and how near an inverse comes, is in other tests."""
SMALL = Size(64, 64)
"""Of the embedded model's pictures where no size is told, no mark is to be found and no steps are named."""
LESS = {
    r"\bsigmas\(\d+\)": f"sigmas({FEW})",
    r"--refine-steps \d+": "--refine-steps 1",
    r"\biterations=\d+": "iterations=2",
    r"\brtol=[\d.e-]+": "rtol=1",
    r"\bpictures=\d+": "pictures=2",
}
"""What is written otherwise before it is run, and how. So these values themselves are not tried here."""


@pytest.fixture
def run(tmp_path, monkeypatch) -> Callable[[list[Piece], str], None]:
    """run(pieces, name): run pieces in order, in an empty folder; names are shared by those in Python.

    All in this process, since a process for each would import everything again.
    """
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(Image.Image, "show", lambda *args, **kwargs: None)  # a test opens no window
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    few, check, own_size = FEW, Settings.__post_init__, sd35.found.native_size

    def checked(settings: Settings) -> None:
        if isinstance(settings.schedule, str):
            object.__setattr__(settings, "steps", min(settings.steps, few))
        check(settings)

    monkeypatch.setattr(Settings, "__post_init__", checked)
    monkeypatch.setitem(flow.inverse.exact.exact.__kwdefaults__, "max_evaluations", TRIALS)
    monkeypatch.setattr("sd35.tasks.calibrate.FINE", FINE)
    monkeypatch.setattr(sd35.found, "native_size", lambda part: SMALL if few == FEW else own_size(part))

    def run(pieces: list[Piece], name: str) -> None:
        nonlocal few
        namespace = {"__name__": "__main__"}
        for piece in pieces:
            few = MORE if re.search(r"watermark|--cache \d", piece.source) else FEW
            source = shortened(piece.source)
            if piece.language == "python":
                exec(compile("\n" * (piece.line - 1) + source, name, "exec"), namespace)
            else:
                code = status(source)
                assert code == 0, f"{name}:{piece.line}: exit status {code}: {piece.source}"

    return run


def shortened(source: str) -> str:
    """What takes less time and runs the same code, with other numbers."""
    for pattern, less in LESS.items():
        source = re.sub(pattern, less, source)
    return source


def status(command: str) -> int:
    """Run a command of this folder, in a shell only where it needs one."""
    if any(mark in command for mark in "|&;<>$`*"):
        return in_a_shell(command)
    try:
        return main(shlex.split(command, comments=True)[1:])
    except SystemExit as end:
        return int(end.code or 0)


def in_a_shell(command: str) -> int:
    """Run a command of this folder as a user does, with `sd35` on the path."""
    (commands := Path("..", "bin").resolve()).mkdir(exist_ok=True)
    (commands / "sd35").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sd35 "$@"\n')
    (commands / "sd35").chmod(0o755)
    environment = {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(["bash", "-c", command], env=os.environ | environment, check=False).returncode


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_shows_works(document, run):
    pieces = pieces_of(document.read_text(encoding="utf-8"))
    if not pieces or document.name in OF_OTHERS:
        pytest.skip("shows nothing that runs without the network, or has a test of its own")
    run(pieces, document.name)


@pytest.mark.usefixtures("run")
def test_a_command_of_the_readme_works_in_a_shell():
    pieces = pieces_of((ROOT / "README.md").read_text(encoding="utf-8"))
    assert pieces[-1].source.startswith("sd35 verify")
    assert in_a_shell(f"{pieces[-1].source} > shown.txt") == 0
    assert Path("shown.txt").read_text()


def test_the_readme_shows_python_and_the_command_line():
    languages = {piece.language for piece in pieces_of((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert languages == {"python", "bash"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_into_the_project_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s#]+)|<img[^>]+src=\"([^\"]+)", text)
    local = [one or other for one, other in targets if "://" not in (one or other)]
    assert [target for target in local if not (document.parent / target).exists()] == []


SAMPLE = """
```python
x = 1
```
Text, and a block that is not to be run:
```
x = nonsense
```
```bash
pip install torch==2.13.0    # the network
$ sd35 generate "a red circle" \\
    --seed 1 -o red.png
sd35 generate "a cat" -m stabilityai/stable-diffusion-3.5-medium
sd35 inspect sd3.5_medium.safetensors
sd35 inspect tiny
sd35 train tiny
# sd35 generate "in a comment"
```
```python
pipe = sd35.load("sd3.5_medium.safetensors")
```
```python
y = x + 1
open("y.txt", "w").write(str(y))
```
"""


def test_pieces_are_told_apart():
    assert [(piece.line, piece.source.split("\n")[0]) for piece in pieces_of(SAMPLE)] == [
        (3, "x = 1"),
        (11, 'sd35 generate "a red circle"     --seed 1 -o red.png'),
        (15, "sd35 inspect tiny"),
        (23, "y = x + 1"),
    ]


def test_python_blocks_share_their_names(run):
    run([piece for piece in pieces_of(SAMPLE) if piece.language == "python"], "sample")
    assert Path("y.txt").read_text() == "2"


def test_a_failure_is_told_with_its_line(run):
    with pytest.raises(ZeroDivisionError) as found:
        run([Piece("python", "1 / 0", 7)], "sample")
    assert (Path(found.traceback[-1].path).name, found.traceback[-1].lineno + 1) == ("sample", 7)
    for command in ("sd35 no-such-command", "sd35 no-such-command 2> log"):
        with pytest.raises(AssertionError, match="sample:7: exit status 2: sd35 no-such-command"):
            run([Piece("bash", command, 7)], "sample")


def test_no_more_steps_are_taken_than_it_needs(run):
    shown = f"""
import torch, flow, sd35
assert len(flow.sigmas(28)) == len(sd35.Settings(prompts='a').sigmas) == {FEW + 1}
found = flow.inversion(lambda x, sigma: 9 * x**3, torch.ones(1, 2), flow.sigmas(28), accuracy=1e-6)
assert max(step.evaluations for step in found.report.steps) == {TRIALS}
"""
    run([Piece("python", shown, 1)], "sample")
