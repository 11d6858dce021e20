"""The judge of the tests, for benchmarks; it follows outlines and shares no code with second_judge.py."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

PATH = Path(__file__).resolve().parents[1] / "tests" / "judge.py"


@cache
def load_judge() -> ModuleType:
    """The judge, from where the tests have it."""
    spec = importlib.util.spec_from_file_location("judge", PATH)
    assert spec is not None
    assert spec.loader is not None
    judge = importlib.util.module_from_spec(spec)
    sys.modules["judge"] = judge
    spec.loader.exec_module(judge)
    return judge
