"""The search of the exact inverse: each sample stops by itself."""

import pytest
import torch
from torch import Tensor

import flow


class Parted:
    """A velocity that can be asked for some samples alone, and counts how many it is asked for."""

    def __init__(self, velocity: flow.Velocity) -> None:
        self.velocity, self.asked = velocity, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.asked += len(x)
        return self.velocity(x, sigma)

    def part(self, samples: list[int]) -> "Parted":
        assert len(set(samples)) == len(samples)
        return self


def drawn(velocity: flow.Velocity, sigmas: Tensor, count: int = 16) -> tuple[Tensor, Tensor]:
    noise = torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise, flow.solve(velocity, noise, sigmas)


def test_a_sample_stops_by_itself(toy):
    """Its noise is that of the sample alone, and what the others take costs it nothing."""
    velocity, sigmas = toy(), flow.sigmas(14, preset="tailed")
    _, data = drawn(velocity, sigmas, 6)
    parted = Parted(velocity)
    together = flow.inversion(parted, data, sigmas, accuracy=1e-3)
    made = [sum(step.made[sample] for step in together.report.steps) for sample in range(6)]
    for sample in range(6):
        alone = flow.inversion(velocity, data[sample : sample + 1], sigmas, accuracy=1e-3)
        # Rounding depends on where a sample lies in memory, and the search multiplies it: 6e-8 once in 150.
        torch.testing.assert_close(together.noise[sample : sample + 1], alone.noise, rtol=0, atol=1e-6)
        assert abs(made[sample] - alone.report.evaluations) <= 2
    assert len(set(made)) > 1
    assert parted.asked == sum(made) < 6 * together.report.evaluations
    assert together.report.mean_evaluations == pytest.approx(sum(made) / 6)


def test_a_velocity_without_parts_finds_the_same(toy):
    velocity, sigmas = toy(), flow.sigmas(14, preset="tailed")
    _, data = drawn(velocity, sigmas, 6)
    parted = flow.inversion(Parted(velocity), data, sigmas, solver="heun", accuracy=1e-3)
    whole = flow.inversion(velocity, data, sigmas, solver="heun", accuracy=1e-3)
    torch.testing.assert_close(whole.noise, parted.noise, rtol=0, atol=1e-6)
