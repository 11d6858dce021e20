"""What every test may ask for."""

import gc
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from sd35.verify.sinusoids import Sinusoids

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# Here and in child processes: with models this small, more threads wait for one another and burn time.


def pytest_collection_finish() -> None:
    """Seek garbage seldom, and not in what is imported, which stays: seeking it took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "reference"


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """The folder of activations made from the original implementation; absent on a user's machine."""
    if not SHARED.is_dir():
        pytest.skip("needs shared/reference beside the project")
    return SHARED


def module_at(place: str) -> ModuleType:
    """A module by its place in the project: neither `tests` nor `examples` is a package.

    An installed one may bear its name.
    """
    path = ROOT / place
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """script("examples/moons.py"): the module, not run."""
    return module_at


@pytest.fixture(scope="session")
def judge() -> ModuleType:
    """tests/judge.py."""
    return module_at("tests/judge.py")


@pytest.fixture(scope="session")
def malformed() -> dict[str, NDArray[np.uint8]]:
    """The pictures of tests/malformed.py, by name."""
    return module_at("tests/malformed.py").pictures()


@pytest.fixture(scope="session")
def lies() -> Callable:
    """lies(scene): the scene with one thing changed; see tests/lies.py."""
    return module_at("tests/lies.py").lies


@pytest.fixture(scope="session")
def in_eight_bits() -> Callable:
    """Put layers of tests/eight_bits.py in the places of a module's linear ones."""
    return module_at("tests/eight_bits.py").in_eight_bits


@pytest.fixture(scope="session")
def joint_controlnet() -> ModuleType:
    """tests/joint_controlnet.py."""
    return module_at("tests/joint_controlnet.py")


@pytest.fixture(scope="session")
def other_processor() -> Callable:
    """`with other_processor(seed)`: compute as another processor might; see tests/processor.py."""
    return module_at("tests/processor.py").other_processor


@pytest.fixture(scope="session")
def original_frequencies(shared_reference: Path) -> Tensor:
    """The sinusoids' frequencies, (128,), as the processor had them that made the activations."""
    with safe_open(shared_reference / "parity" / "tables.safetensors", "pt") as file:
        return frequencies(file.get_tensor("timestep/in").float(), file.get_tensor("timestep/embedding256"))


@pytest.fixture(scope="session")
def original_sinusoids(shared_reference: Path, original_frequencies: Tensor) -> Callable[[Tensor], Sinusoids]:
    """The sinusoids of noise levels as they were where the original implementation ran.

    Those of ten timesteps are stored. Of others they are computed from the same frequencies, which the stored
    ones tell, in float64, and rounded once.
    """
    with safe_open(shared_reference / "parity" / "tables.safetensors", "pt") as file:
        timestep, values = file.get_tensor("timestep/in"), file.get_tensor("timestep/embedding256")

    def of(sigma: Tensor) -> Sinusoids:
        computed = sinusoids_of(sigma, original_frequencies)
        wanted = (1000 * sigma.double()).float()
        for row, found in zip(values, timestep, strict=True):
            computed[wanted == found] = row
        return Sinusoids(sigma, computed)

    return of


@pytest.fixture(scope="session")
def training_sinusoids(original_frequencies: Tensor) -> Callable[[Tensor], Sinusoids]:
    """The same where the peers' training scripts ran, on another processor."""
    moved = original_frequencies.clone()
    for index, units in TRAINING_FREQUENCIES.items():
        moved.view(torch.int32)[index] += units
    return lambda sigma: Sinusoids(sigma, sinusoids_of(sigma, moved))


TRAINING_FREQUENCIES = {12: -1, 13: 1, 44: 1, 106: -1, 119: 1, 126: -1}
"""Index of a frequency to the units in the last place by which that processor's exp gave another one."""


def sinusoids_of(sigma: Tensor, omega: Tensor) -> Tensor:
    """Of noise levels (n,) and frequencies (m,): (n, 2 m), computed in float64 and rounded once."""
    angles = ((1000 * sigma.double()).float()[:, None] * omega).double()
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def frequencies(timestep: Tensor, values: Tensor) -> Tensor:
    """The float32 frequencies whose sinusoids at (n,) timesteps are nearest to (n, 2 m) values: (m,)."""
    half = values.shape[1] // 2
    formula = (10000 ** -(torch.arange(half, dtype=torch.float64) / half)).float()
    near = (formula.view(torch.int32) + torch.arange(-16, 17, dtype=torch.int32)[:, None]).view(torch.float32)
    angles = (timestep[:, None, None] * near).double()  # (n, 33, m)
    error = (angles.cos() - values[:, None, :half]).abs() + (angles.sin() - values[:, None, half:]).abs()
    return near.gather(0, error.amax(dim=0).argmin(dim=0, keepdim=True))[0]
