import importlib
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_it_counts_what_was_run(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    importlib.import_module("reading_path").main(["list"])
    counted = [int(number) for number in re.findall(r"\d+", capsys.readouterr().out.splitlines()[-1])]
    assert len(counted) == 7  # 35 is of the folder's name
    functions, files, lines = counted[:3]
    assert 1 < files <= functions <= lines
