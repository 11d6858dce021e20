"""The cache of a velocity: what it leaves out, what it costs, and where it refuses."""

import pytest
import torch

import flow
from flow import Cached, FlowError, closeness, guided, sigmas, solve

TABLE = sigmas(28)


def test_a_threshold_of_zero_computes_everything(toy, noise_for, counted):
    velocity = counted(toy())
    cached = Cached(velocity, TABLE, threshold=0)
    assert torch.equal(solve(cached, noise_for(), TABLE), solve(toy(), noise_for(), TABLE))
    assert velocity.calls == 56 // 2
    assert cached.computed == [True] * 28


@pytest.mark.parametrize("reuse", ["last", "line", "residual"])
def test_it_saves_evaluations_and_stays_near(reuse, toy, noise_for, counted):
    velocity = counted(toy())
    cached = Cached(velocity, TABLE, threshold=0.1, reuse=reuse)
    end = solve(cached, noise_for(), TABLE)
    assert velocity.calls == sum(cached.computed) <= 24
    assert all(cached.computed[:4])
    assert cached.computed[-1]
    assert closeness(end, solve(toy(), noise_for(), TABLE)).total_psnr > 25


def test_a_second_run_begins_anew(toy, noise_for):
    cached = Cached(toy(), TABLE, threshold=0.1)
    first = solve(cached, noise_for(), TABLE)
    assert torch.equal(solve(cached, noise_for(), TABLE), first)
    alone = solve(Cached(toy(), TABLE, threshold=0.1), noise_for(2), TABLE)
    assert torch.equal(solve(cached, noise_for(2), TABLE), alone)  # and so does another batch


@pytest.mark.parametrize(
    "options", [{"steps": (0, 3, 5)}, {"threshold": 0.5, "first": 1}], ids=["steps", "threshold"]
)
def test_a_second_run_uses_nothing_of_the_first(options, toy, noise_for):
    cached = Cached(toy(), TABLE, **options)
    first = solve(cached, noise_for(), TABLE)
    computed = list(cached.computed)
    assert torch.equal(solve(cached, noise_for(), TABLE), first)
    assert cached.computed == computed
    assert len(computed) == 28


def test_branches_are_computed_together(toy, noise_for, counted):
    """The guided difference is never that of an old and a new half."""
    cond, uncond = counted(toy(1.0)), counted(toy(0.0))
    cached = Cached(guided(cond, uncond, 4.5), TABLE, threshold=0.1)
    solve(cached, noise_for(), TABLE)
    assert cond.calls == uncond.calls == sum(cached.computed) < 28


def test_the_steps_are_those_of_the_table_whatever_the_solver_asks(toy, noise_for):
    cached = Cached(toy(), TABLE, threshold=10.0)
    solve(cached, noise_for(), TABLE, "heun")
    assert all(cached.computed[:7])  # one call at the first level, and two at each of the next three
    assert cached.computed[-1]


def test_the_worst_sample_decides(noise_for):
    still, moving = torch.zeros(1, 4, 4, 4), torch.ones(1, 4, 4, 4)
    weights = torch.cat([still, 3 * moving])
    seen = Cached(lambda x, sigma: weights * x + 1, TABLE, threshold=0.05)
    alone = Cached(lambda x, sigma: 3 * x + 1, TABLE, threshold=0.05)
    x = noise_for(1)
    solve(seen, x.repeat(2, 1, 1, 1), TABLE)
    solve(alone, x, TABLE)
    assert seen.computed == alone.computed


def test_there_is_no_way_up(toy, noise_for):
    cached = Cached(toy(), TABLE)
    data = solve(cached, noise_for(), TABLE)
    with pytest.raises(FlowError, match="cannot be followed upward"):
        solve(cached, data, TABLE.flip(0))
    for method in flow.METHODS:
        with pytest.raises(FlowError, match="cached"):
            flow.invert(Cached(toy(), TABLE), data, TABLE, method)
    with pytest.raises(FlowError, match="must fall"):
        Cached(toy(), TABLE.flip(0))


def test_named_steps_are_computed_and_no_others(toy, noise_for, counted):
    steps = (0, 1, 2, 5, 9, 20)
    velocity = counted(toy())
    cached = Cached(velocity, TABLE, steps=steps)
    solve(cached, noise_for(), TABLE)
    assert [step for step, computed in enumerate(cached.computed) if computed] == list(steps)
    assert velocity.sigmas == TABLE[list(steps)].tolist()
    for wrong in ((1, 2), (0, 28)):
        with pytest.raises(FlowError, match="0 to 27, 0 among them"):
            Cached(toy(), TABLE, steps=wrong)


@pytest.mark.parametrize(("reuse", "degree"), [("last", 0), ("line", 1), ("curve", 2)])
def test_what_is_used_again_is_drawn_through_what_was_computed(reuse, degree):
    """Exact where the velocity is a polynomial in σ of the degree, and not of the next one."""

    def polynomial(power):
        return lambda x, sigma: torch.full_like(x, float(sigma[0]) ** power)

    noise = torch.zeros(1, 2, dtype=torch.float64)
    for power in (degree, degree + 1):
        found = solve(Cached(polynomial(power), TABLE, steps=(0, 1, 2, 6), reuse=reuse), noise, TABLE)
        exact = (
            torch.equal(found.float(), solve(polynomial(power), noise, TABLE).float())
            or found.sub(solve(polynomial(power), noise, TABLE)).abs().max() < 1e-6
        )
        assert exact == (power == degree)


def test_nothing_is_used_across_the_end_of_a_window(counted):
    """Guidance that ends at a level makes another velocity, which a line through both kinds is none of."""
    window, noise = (0.6, 1.0), torch.zeros(1, 2)

    def velocity(x, sigma):
        return torch.full_like(x, 2.0 if sigma[0] >= 0.6 else -1.0)

    true = solve(velocity, noise, TABLE)
    steps = (0, 1, 4, 8, 12, int((TABLE >= 0.6).sum()) + 1, 26)
    told, untold = (Cached(velocity, TABLE, steps=steps, windows=those) for those in ((window,), ()))
    torch.testing.assert_close(solve(told, noise, TABLE), true)
    assert sum(told.computed) == len(steps) + 1  # one more: the first step below the window
    assert (solve(untold, noise, TABLE) - true).abs().max() > 0.05


def test_the_steps_for_a_budget_are_better_than_even_ones(toy, noise_for, counted):
    velocity, held_out = counted(toy()), noise_for(8, seed=9)
    found = flow.choose_steps(velocity, noise_for(2), TABLE, 12, rounds=2)
    assert len(found) == 12
    assert found[0] == 0
    even = sorted({round(27 * step / 11) for step in range(12)})
    true = solve(toy(), held_out, TABLE)
    near = [
        float(closeness(solve(Cached(toy(), TABLE, steps=s), held_out, TABLE), true).total_psnr)
        for s in (even, found)
    ]
    assert near[1] > near[0] + 6
    assert velocity.calls < 2000
    with pytest.raises(FlowError, match="budget must be 1 to 28"):
        flow.choose_steps(toy(), noise_for(1), TABLE, 29)


def test_a_budget_counts_what_a_window_forces(toy, noise_for):
    """What is chosen is what is computed, and judged as it is drawn: without a line across the end."""
    windows, noise, table = ((0.5, 1.0),), noise_for(2), sigmas(10)
    after = int((table >= 0.5).sum())
    assert after not in {0, 3, 6, 9}  # not even by chance
    for rounds in (0, 2):
        chosen = flow.choose_steps(toy(), noise, table, 4, rounds=rounds, windows=windows)
        cached = Cached(toy(), table, steps=chosen, windows=windows)
        solve(cached, noise, table)
        assert [step for step, computed in enumerate(cached.computed) if computed] == list(chosen)
        assert len(chosen) == 4
        assert after in chosen
    with pytest.raises(FlowError, match="at least 2, as steps"):
        flow.choose_steps(toy(), noise, table, 1, windows=windows)


def test_a_search_keeps_the_velocities_of_its_choice_alone(toy, noise_for, monkeypatch):
    held = []
    true = flow.budget._Search.error

    def error(search, steps):
        found = true(search, steps)
        held.append(len(search.velocities))
        return found

    monkeypatch.setattr(flow.budget._Search, "error", error)
    flow.choose_steps(toy(), noise_for(1), sigmas(10), 5, rounds=2)
    assert len(held) > 20
    assert max(held) <= 2 * 5
