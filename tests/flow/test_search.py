"""A search finds the levels on which a solver ends nearest to the flow."""

import pytest
import torch

from flow import sigmas, solve
from flow.search import held, search_levels


def bent(x, sigma):
    """dx/dσ = 1 / (σ + 0.1)², which does not depend on x: fast near 0."""
    return torch.ones_like(x) / (sigma[:, None] + 0.1) ** 2


def test_no_other_level_ends_nearer():
    """Where there is one to choose, trying each shows it."""
    x, end = torch.zeros(1, 1), torch.tensor([[1 / 1.1 - 1 / 0.1]])

    def error(level):
        return float((solve(bent, x, torch.tensor([1.0, level, 0.0]), "midpoint") - end).abs())

    found = search_levels(bent, x, end, torch.tensor([1.0, 0.5, 0.0]), "midpoint")
    assert error(float(found[1])) < 1.01 * min(map(error, torch.linspace(0.01, 0.99, 981).tolist()))
    assert error(float(found[1])) < 0.6 * error(0.5)


def test_levels_that_are_fixed_stay_and_the_bound_holds(toy, noise_for):
    noise, table = noise_for(2), sigmas(6, preset="tailed")
    end = solve(toy(), noise, sigmas(50, preset="tailed"), "rk4")
    found = search_levels(toy(), noise, end, table, "ab2", fixed=(2,), least_ratio=0.4)
    assert found[[0, 2, -1]].tolist() == table[[0, 2, -1]].tolist()
    assert (found.diff() < 0).all()
    assert (found[1:-1] / found[:-2]).min() >= 0.4 - 1e-6
    assert (found - table)[[1, 3, 4, 5]].abs().max() > 0.01


def test_what_another_run_computed_is_not_computed_again(toy, noise_for, counted):
    """Of two levels that may move, the first needs two evaluations anew and the second one, in each round."""
    noise, velocity = noise_for(2), counted(toy())
    search_levels(velocity, noise, noise, torch.tensor([1.0, 0.6, 0.3, 0.0]), "euler")
    again = [level for level in velocity.sigmas if level == 1]
    assert len(again) == 1
    assert velocity.sigmas[:6] == pytest.approx([1.0, 0.6, 0.3, 0.594, 0.3, 0.294], abs=1e-6)


def test_levels_are_held_to_the_bound():
    table = torch.tensor([1.0, 0.2, 0.05, 0.0])
    assert torch.equal(held(table, None), table)
    assert held(table, 0.5).tolist() == pytest.approx([1.0, 0.5, 0.25, 0.0])


def test_where_no_level_matters_none_is_moved():
    x, table = torch.zeros(2, 3), torch.tensor([1.0, 0.6, 0.3, 0.0])
    found = search_levels(lambda x, sigma: torch.zeros_like(x), x, x, table, "euler")
    assert torch.equal(found.float(), table)
