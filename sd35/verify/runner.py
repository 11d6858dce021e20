"""Running one stage after another: what is given, what comes of it, how far it is from the reference."""

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..taps.parts import Tap, find_taps
from ..taps.watch import watching
from .bounds import Family, Precision
from .reference import Reference
from .sinusoids import Sinusoids, difference

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Check:
    """One line of the table: a stage against the reference."""

    group: str
    stage: str
    absolute: float  # the largest error
    relative: float  # the same over the largest magnitude of what was expected
    bound: float  # on `relative`
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.relative <= self.bound


@dataclass
class Runner:
    """Where and in what everything is run, and when the last stage ended."""

    device: torch.device
    precision: Precision
    reference: Mapping[str, Reference]
    _last: float = field(default_factory=time.perf_counter)

    @property
    def wide(self) -> torch.dtype:
        """The dtype of states and pictures: float32, or float64 in a float64 run."""
        return torch.promote_types(self.precision.dtype, torch.float32)

    def ready(self, module: Module, name: str, dtype: torch.dtype | None = None) -> Module:
        """Give a module its stored weights, on the device and in the dtype: the run's, or this one."""
        module.load_state_dict(self.reference[name].weights)
        return module.to(self.device, dtype or self.precision.dtype).eval().requires_grad_(False)

    def given(self, name: str, *keys: str) -> Iterator[Tensor]:
        """Stored inputs, on the device; floats in `wide`, but noise levels as they are."""
        for key in keys:
            tensor = self.reference[name][f"in/{key}"].to(self.device)
            yield tensor.to(self.wide) if tensor.is_floating_point() and "sigma" not in key else tensor

    def sinusoids(self, name: str, levels: str) -> Sinusoids:
        """The stored sinusoids of the noise levels "in/<levels>", as many as there are."""
        values = self.reference[name]["in/sinusoids"]
        return Sinusoids(self.reference[name][f"in/{levels}"][: len(values)], values)

    def start(self) -> None:
        """Begin to time the next stage, when the device has done what it was given."""
        self._last = self._now()

    def check(
        self,
        group: str,
        stage: str,
        actual: Tensor,
        expected: Tensor,
        bound: Family | float,
        allowance: float = 0.0,
    ) -> Check:
        """Compare a stage that has just ended.

        The bound is that of a family, or a number; `allowance` is added to it.
        """
        bound = self.precision.bound(bound) if isinstance(bound, str) else bound
        bound += allowance
        return self._compared(group, stage, actual, expected, bound, self._lap())

    def check_sinusoids(self, group: str, computed: Tensor, stored: Sinusoids) -> Check:
        """Compare sinusoids, each with its own bound; the one that comes nearest to its bound is shown."""
        apart, allowed = difference(computed, stored)
        at = int((apart / allowed).argmax())
        error = float(apart.flatten()[at])  # absolute and relative: the largest of them is 1
        return Check(group, "sinusoids", error, error, float(allowed.flatten()[at]), self._lap())

    def equal(self, group: str, stage: str, actual: Tensor, expected: Tensor) -> Check:
        """Compare what must be the same to the last bit."""
        return self._compared(group, stage, actual, expected, 0.0, self._lap())

    @contextmanager
    def timed_taps(
        self, root: nn.Module, names: Collection[str]
    ) -> Iterator[dict[str, tuple[Tensor, float]]]:
        """Keep the tensors at these taps, each with the time since the one before it."""
        taken: dict[str, tuple[Tensor, float]] = {}

        def visit(tap: Tap, tensor: Tensor) -> None:
            taken[tap.name] = tensor.detach().clone(), self._lap()

        taps = find_taps(root)
        with watching([tap for name, tap in taps.items() if name in names], visit):
            self.start()
            yield taken

    def tapped(
        self,
        group: str,
        taken: Mapping[str, tuple[Tensor, float]],
        expected: Mapping[str, Tensor],
        family: Family,
    ) -> Iterator[Check]:
        """Compare kept tensors, in the order in which they were computed."""
        for name, (tensor, seconds) in taken.items():
            yield self._compared(group, name, tensor, expected[name], self.precision.bound(family), seconds)

    def _compared(
        self, group: str, stage: str, actual: Tensor, expected: Tensor, bound: float, seconds: float
    ) -> Check:
        actual, expected = actual.detach().cpu().double(), expected.double()
        if actual.shape != expected.shape:
            shapes = f"{tuple(actual.shape)}, and the reference's is {tuple(expected.shape)}"
            raise RuntimeError(f"{group}: {stage} has the shape {shapes}")
        absolute = float((actual - expected).abs().max())
        return Check(group, stage, absolute, absolute / float(expected.abs().max()), bound, seconds)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def _lap(self) -> float:
        before, self._last = self._last, self._now()
        return self._last - before
