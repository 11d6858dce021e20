"""The stored reference activations, and how a module's own are taken and compared with them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from sd35.verify.sinusoids import Sinusoids

LIMITS = {torch.float32: 2e-6, torch.float64: 1e-12}
"""Largest error that parity allows, relative to the largest magnitude of what is compared.

Two correct implementations differ in float32 by the order of their sums: README.md has what was measured.
"""


@dataclass(frozen=True)
class Reference:
    """One file of activations: tensors by name, and the sizes and seeds it was made with."""

    tensors: dict[str, Tensor]
    config: dict

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    @property
    def sinusoids(self) -> Sinusoids:
        """What the reference embedded of its noise levels."""
        values = self["in/sinusoids"]
        levels = "in/sigma" if "in/sigma" in self.tensors else "in/sigmas"
        return Sinusoids(self[levels][: len(values)], values)

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """The weights under `prefix` in float32, which holds what the file stores exactly."""
        return {name: tensor.float() for name, tensor in self.under(f"weights/{prefix}").items()}


def read(path: Path) -> Reference:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Reference(tensors, json.loads(file.metadata()["config"]))


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Reference]:
    """Activations of diffusers and transformers, stored here by make_reference.py."""
    return lambda name: read(Path(__file__).parent / f"{name}.safetensors")


@pytest.fixture(scope="session")
def golden(shared_reference: Path) -> Callable[[str], Reference]:
    """Activations of the original implementation; a test that asks is skipped where they are not."""
    return lambda name: read(shared_reference / "parity" / f"{name}.safetensors")


@contextmanager
def taken(module: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor | None, ...]) -> None:
            if isinstance(output, Tensor):
                outputs[path] = output.clone()
            else:  # a joint block gives its two streams, of which the last block has lost one
                outputs.update(
                    {
                        f"{path}.{n}": y.clone()
                        for n, y in zip(("x", "context"), output, strict=True)
                        if y is not None
                    }
                )

        return hook

    handles = [module.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="session")
def tapped() -> Callable[[nn.Module, Iterable[str]], AbstractContextManager[dict[str, Tensor]]]:
    """`with tapped(module, paths) as outputs`: what the submodules at `paths` gave, by path."""
    return taken


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    difference = (actual.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max())


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    """The largest error, relative to the largest magnitude of the expected."""
    return relative_error


@pytest.fixture(scope="session")
def agree() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor], float], None]:
    """Check every stage of `expected`, and name those that depart by more than the limit."""

    def check(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], limit: float) -> None:
        assert expected, "nothing to compare with"
        errors = {stage: relative_error(actual[stage], tensor) for stage, tensor in expected.items()}
        departed = {stage: f"{value:.1e}" for stage, value in errors.items() if not value <= limit}
        assert not departed, f"relative error above {limit:g} at {departed}"

    return check


@pytest.fixture(params=LIMITS, ids=lambda dtype: str(dtype).removeprefix("torch."))
def precision(request: pytest.FixtureRequest) -> tuple[torch.dtype, float]:
    """A dtype, and the largest relative error that parity allows in it."""
    return request.param, LIMITS[request.param]


@pytest.fixture(params=LIMITS, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, params=[0, 1], ids=["here", "elsewhere"])
def _one_thread_and_no_grad(
    request: pytest.FixtureRequest, one_thread: None, other_processor: Callable
) -> Iterator[None]:
    """No graph; on this processor, and as on another."""
    with torch.no_grad(), other_processor(request.param) if request.param else nullcontext():
        yield
