"""Dormand-Prince keeps its tolerance, gives dense output, and says when it cannot."""

import math

import pytest
import torch

from flow import FlowError, dopri5, sigmas, solve


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-9])
def test_error_follows_the_tolerance(rtol, gaussian, noise_for, counted):
    x, velocity = noise_for(dtype=torch.float64), counted(gaussian)
    table = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = solve(velocity, x, table, "dopri5", rtol=rtol, atol=0.01 * rtol)
    error = float((found - gaussian.exact(x, 1, 0)).abs().max())
    assert error < 10 * rtol
    assert velocity.calls < 40 * rtol**-0.2


def test_a_tolerance_need_not_be_told(gaussian, noise_for):
    x = noise_for()
    found = solve(gaussian, x, sigmas(4), "dopri5")
    assert float((found - gaussian.exact(x, 1, 0)).abs().max()) < 1e-3  # ten times the default


def test_a_dense_table_costs_nothing_and_is_met_in_between(gaussian, noise_for, counted):
    x = noise_for(dtype=torch.float64)
    sparse, dense = counted(gaussian), counted(gaussian)
    solve(sparse, x, torch.linspace(1, 0, 11).double(), "dopri5", rtol=1e-6, atol=1e-8)
    steps = list(dopri5(dense, x, torch.linspace(1, 0, 101).double(), rtol=1e-6, atol=1e-8))
    assert dense.calls <= sparse.calls + 18
    assert [step.number for step in steps] == list(range(100))
    for step in steps:
        assert (step.x - gaussian.exact(x, 1, float(step.sigma_next))).abs().max() < 1e-4


def test_runs_upward_too(gaussian, noise_for):
    x = noise_for(dtype=torch.float64)
    data = solve(gaussian, x, sigmas(4), "dopri5", rtol=1e-8, atol=1e-8)
    assert torch.allclose(
        solve(gaussian, data, sigmas(4).flip(0), "dopri5", rtol=1e-8, atol=1e-8), x, atol=1e-5
    )


def test_a_zero_that_stays_zero_needs_no_atol():
    x = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    found = solve(lambda x, sigma: x, x, torch.tensor([1.0, 0.0]), "dopri5", rtol=1e-6, atol=0)
    assert torch.allclose(found, x * math.exp(-1), rtol=1e-5, atol=0)


def test_tolerances_beyond_the_dtype_are_refused(gaussian, noise_for):
    with pytest.raises(FlowError, match=r"torch.float32 needs rtol >= 1.2e-06"):
        dopri5(gaussian, noise_for(), sigmas(4), rtol=1e-8)
    with pytest.raises(FlowError, match="atol >= 0"):
        dopri5(gaussian, noise_for(), sigmas(4), atol=-1.0)
    with pytest.raises(FlowError, match="at least 7"):
        dopri5(gaussian, noise_for(), sigmas(4), max_evaluations=3)


def test_running_out_says_how_far_it_came(gaussian, noise_for):
    with pytest.raises(FlowError, match=r"reached sigma .* in \d+ evaluations"):
        solve(gaussian, noise_for(), sigmas(4), "dopri5", rtol=1e-5, atol=0, max_evaluations=20)


def test_a_field_without_a_limit_ends_in_an_error(noise_for):
    def noisy(x, sigma):
        return 1e3 * torch.sin(1e9 * x)  # no step is small enough for float32

    with pytest.raises(FlowError, match="cannot meet rtol"):
        solve(noisy, noise_for(), sigmas(4), "dopri5", rtol=1e-5, atol=1e-6, max_evaluations=1000)
