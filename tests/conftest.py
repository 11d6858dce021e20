"""What every test may ask for."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "reference"


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """The folder of activations made from the original implementation; absent on a user's machine."""
    if not SHARED.is_dir():
        pytest.skip("needs shared/reference beside the project")
    return SHARED


@pytest.fixture(scope="session")
def judge() -> ModuleType:
    """tests/judge.py, by its path: `tests` is no package, and an installed one may bear its name."""
    path = Path(__file__).with_name("judge.py")
    spec = importlib.util.spec_from_file_location("judge", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["judge"] = module
    spec.loader.exec_module(module)
    return module
