"""The command that writes a sheet."""

import pytest
from PIL import Image

from sd35.cli import attention, main


@pytest.fixture
def run(pipe, tmp_path, monkeypatch):
    """Runs the command on the random model, in an empty folder."""
    monkeypatch.setattr(attention, "load_pipeline", lambda args, settings, found, blocks: pipe)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(
        ["attention", "a red circle above a blue square", "--steps", "1", *arguments]
    )


def test_writes_a_sheet_and_prints_numbers(run, tmp_path, capsys):
    assert run("-o", "sheet.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sheet.png"
    assert [line.split()[0] for line in lines[2:]] == ["red", "circle", "above", "blue", "square"]
    assert Image.open(tmp_path / "sheet.png").width > 1000
    assert run("-o", "sheet.png") == 2
    assert "exists" in capsys.readouterr().err
    assert run("-o", "sheet.png", "--overwrite", "-w", "red", "--block", "1", "--part", "text-image") == 0
    assert Image.open(tmp_path / "sheet.png").width < 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-w", "circel"), "did you mean circle?"),
        (("--block", "9"), "blocks must be 0 to 2, got [9]"),
        (("--at-step", "1"), "--at-step must be 0 to 0, got 1"),
        (("-o", "sheet.jpg"), "must be a .png file"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_no_file(run, tmp_path, capsys, arguments, message):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
