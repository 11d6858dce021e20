"""Tables made for one flow are nearer to it than those made for none."""

import json
from dataclasses import asdict

import pytest
import torch

from flow import Calibration, FlowError, calibrate, closeness, sigmas, solve
from flow.calibrate import acceleration, spread

METHODS = ("acceleration", "optimal_steps")


@pytest.fixture(scope="module")
def held_out(toy, noise_for):
    noise = noise_for(16, seed=9)
    return noise, solve(toy(), noise, sigmas(200, preset="tailed"), "rk4")


def decibels(velocity, table, held_out):
    noise, true = held_out
    return float(closeness(solve(velocity, noise, table), true).psnr.median())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [6, 14])
def test_a_table_made_for_a_flow_is_nearer_to_it_on_other_starts(method, steps, toy, noise_for, held_out):
    made = calibrate(toy(), noise_for(4), steps, method=method)
    assert made.table.shape == (steps + 1,)
    assert (made.table[0], made.table[-1]) == (1, 0)
    assert (made.table.diff() < 0).all()
    known = [decibels(toy(), sigmas(steps, preset=preset), held_out) for preset in ("reference", "linear")]
    assert decibels(toy(), made.table, held_out) > max(known) + 6


@pytest.mark.parametrize("method", METHODS)
def test_the_bound_holds_and_costs_little(method, toy, noise_for, held_out):
    free, bound = (calibrate(toy(), noise_for(4), 10, method=method, least_ratio=r) for r in (None, 0.45))
    ratios = bound.table[1:-1] / bound.table[:-2]
    assert ratios.min() >= 0.45 - 1e-5
    assert decibels(toy(), bound.table, held_out) > decibels(toy(), free.table, held_out) - 2


def test_a_small_bound_changes_nothing(toy, noise_for):
    free, bound = (calibrate(toy(), noise_for(2), 6, least_ratio=r) for r in (None, 1e-3))
    assert free.sigmas == bound.sigmas


def test_what_it_says_of_itself_is_so(toy, noise_for, counted):
    for method in METHODS:
        velocity, noise = counted(toy()), noise_for(3)
        made = calibrate(velocity, noise, 5, method=method, settings={"model": "toy", "guidance": 4.5})
        assert made.evaluations == velocity.calls
        end, teacher = solve(toy(), noise, made.table), solve(toy(), noise, sigmas(100, preset="tailed"))
        assert made.rms == pytest.approx(float((end - teacher).square().mean().sqrt()), rel=1e-4)
        stored = json.loads(json.dumps(asdict(made)))
        assert torch.equal(Calibration(**stored).table, made.table)


def test_the_programme_finds_the_best_of_all_tables_of_two_steps(toy, noise_for):
    """Where there is one level to choose, trying each shows which it is."""
    fine, noise = sigmas(12, preset="linear"), noise_for(3)
    teacher = solve(toy(), noise, fine)
    errors = {
        float(level): float((solve(toy(), noise, torch.tensor([1.0, level, 0.0])) - teacher).square().mean())
        for level in fine[1:-1]
    }
    assert calibrate(toy(), noise, 2, fine=fine).sigmas[1] == pytest.approx(
        min(errors, key=errors.__getitem__)
    )


def test_levels_are_dense_where_the_velocity_turns():
    fine = sigmas(100, 1.0, "linear")
    still, turning = torch.zeros(1, 1), torch.cumsum(torch.ones(100), 0)
    velocities = [still + turning[k] * (k >= 80) * 10 + k for k in range(100)]  # fast below σ = 0.2
    table = spread(acceleration(velocities, fine), fine, 10)
    assert ((table < 0.25) & (table > 0)).sum() >= 3
    even = spread(torch.ones(99, dtype=torch.float64), fine, 10)
    assert torch.allclose(even, torch.linspace(1, 0, 11, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"method": "tors"}, "acceleration, optimal_steps"),
        ({"steps": 100}, "more than 100 steps"),
        ({"fine": torch.tensor([0.9, 0.5, 0.3, 0.2, 0.1, 0.0])}, "fall from 1 to 0"),
        ({"least_ratio": 1.0}, r"\(0, 1\)"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_bad_requests_are_named(call, message, gaussian, noise_for):
    with pytest.raises(FlowError, match=message):
        calibrate(gaussian, noise_for(), **({"steps": 4} | call))
