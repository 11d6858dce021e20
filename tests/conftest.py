"""What every test may ask for."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "reference"


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """The folder of activations made from the original implementation; absent on a user's machine."""
    if not SHARED.is_dir():
        pytest.skip("needs shared/reference beside the project")
    return SHARED
