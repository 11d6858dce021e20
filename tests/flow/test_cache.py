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
