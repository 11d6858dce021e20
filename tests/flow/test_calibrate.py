"""Tables made for one flow are nearer to it than those made for none."""

import json
from dataclasses import asdict

import pytest
import torch

from flow import Calibration, FlowError, calibrate, closeness, sigmas, solve
from flow.calibrate import acceleration, pinned, spread

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


@pytest.mark.parametrize(
    ("solver", "steps", "gain"), [("ab2", 8, 3), ("fireflow", 7, 1.5), ("leapfrog", 7, 1.5)]
)
def test_a_search_ends_nearer_on_other_starts_than_where_it_began(
    solver, steps, gain, toy, noise_for, counted, held_out
):
    """By 3.9, 2.2 and 2.4 dB (measured)."""
    velocity = counted(toy())
    made = calibrate(velocity, noise_for(4), steps, method="search", solver=solver)
    assert made.evaluations == velocity.calls
    assert made.solver == solver
    noise, true = held_out
    began = calibrate(toy(), noise_for(4), steps, method="acceleration")
    near, before = (
        closeness(solve(toy(), noise, one.table, solver), true).psnr.median() for one in (made, began)
    )
    assert near > before + gain


@pytest.mark.parametrize("method", ["acceleration", "search"])
def test_no_step_leads_across_the_end_of_a_window(method, toy, noise_for):
    free, up_to = (
        calibrate(toy(), noise_for(2), 6, method=method, windows=windows) for windows in ((), [(0.53, 1.0)])
    )
    assert min(abs(level - 0.53) for level in free.sigmas) > 1e-3
    (level,) = [level for level in up_to.table if level == pytest.approx(0.53, abs=1e-6)]
    assert level < torch.tensor(0.53)  # on the far side, where the velocity is not guided


def test_the_teacher_of_a_search_goes_to_the_end_of_any_fine_table(toy, noise_for):
    noise = noise_for(2)
    made = calibrate(toy(), noise, 6, method="search", solver="ab2", fine=sigmas(51, preset="tailed"))
    end, true = (
        solve(toy(), noise, made.table, "ab2"),
        solve(toy(), noise, sigmas(200, preset="tailed"), "rk4"),
    )
    assert made.rms == pytest.approx(float((end - true).square().mean().sqrt()), rel=0.05)


def test_the_bound_moves_the_level_before_an_end(toy, noise_for):
    made = calibrate(toy(), noise_for(2), 3, method="acceleration", windows=[(0.3, 1.0)], least_ratio=0.45)
    (level,) = [level for level in made.table if level == pytest.approx(0.3, abs=1e-6)]
    assert level < torch.tensor(0.3)
    assert (made.table[1:-1] / made.table[:-2]).min() >= 0.45 - 1e-6


def test_a_search_follows_the_flow_on_both_sides_of_an_upper_end(toy, noise_for):
    """Its teacher, from which `rms` is measured, is the flow itself, also where that changes on the way."""
    below, above, high = toy(), toy(1.0), torch.tensor(0.8)

    def velocity(x, sigma):
        return torch.where((sigma > high)[:, None, None, None], above(x, sigma), below(x, sigma))

    noise = noise_for(2)
    windows, table = [(0.0, 0.8)], sigmas(400, preset="tailed")
    made = calibrate(velocity, noise, 6, method="search", solver="midpoint", windows=windows, fine=table)
    assert any(level == high for level in made.table)
    beyond = torch.nextafter(high, torch.tensor(1.0))
    fine = torch.cat([torch.linspace(1, float(beyond), 40), torch.linspace(0.8, 0, 200)])
    end, true = solve(velocity, noise, made.table, "midpoint"), solve(velocity, noise, fine, "rk4")
    assert made.rms == pytest.approx(float((end - true).square().mean().sqrt()), rel=0.01)


def test_levels_go_to_the_ends_of_windows_and_stay_in_order():
    table = torch.tensor([1.0, 0.9, 0.52, 0.5, 0.2, 0.0])
    moved = pinned(table, [(0.51, 1.0), (0.0, 0.505)])
    assert (moved.diff() < 0).all()
    assert moved.tolist() == pytest.approx([1.0, 0.9, 0.51, 0.505, 0.2, 0.0], abs=1e-6)
    assert torch.equal(pinned(table, [(0.0, 1.0)]), table)
    assert torch.equal(pinned(table[[0, -1]], [(0.5, 1.0)]), table[[0, -1]])  # there is none to move


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
        ({"method": "tors"}, "acceleration, optimal_steps, search"),
        ({"solver": "ab2"}, "for 'ab2' take the method 'search'"),
        ({"method": "search", "solver": "ddim"}, "no solver 'ddim'"),
        ({"method": "search", "solver": "sde"}, "'sde', which draws noise"),
        ({"method": "search", "solver": "dopri5"}, "'dopri5', which chooses its own steps"),
        ({"steps": 100}, "more than 100 steps"),
        ({"fine": torch.tensor([0.9, 0.5, 0.3, 0.2, 0.1, 0.0])}, "fall from 1 to 0"),
        ({"least_ratio": 1.0}, r"\(0, 1\)"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_bad_requests_are_named(call, message, gaussian, noise_for):
    with pytest.raises(FlowError, match=message):
        calibrate(gaussian, noise_for(), **({"steps": 4} | call))
