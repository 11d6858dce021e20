"""Editing on flows whose answers are known."""

import pytest
import torch

from flow import (
    FlowError,
    direct_edit,
    euler,
    flow_edit,
    interpolate,
    last,
    sigmas,
    solve,
    toward_data,
    toward_noise,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pair(gaussian):
    """Two flows that differ in their mean alone: editing must move data by the difference."""
    return gaussian, type(gaussian)(mean=gaussian.mean + 0.8, std=gaussian.std)


def test_flow_edit_moves_gaussian_data_by_the_difference_of_means(pair, noise_for):
    source, target = pair
    data = 0.3 + 0.5 * noise_for(2, dtype=torch.float64)
    edited = last(flow_edit(source, target, data, torch.linspace(1, 0, 101).double(), generator=seeded())).x
    assert torch.allclose(edited, data + 0.8, atol=0.05)


def test_flow_edit_to_the_same_flow_changes_nothing(gaussian, noise_for):
    data = noise_for(2)
    edited = last(flow_edit(gaussian, gaussian, data, sigmas(8), generator=seeded(), average=2)).x
    assert torch.allclose(edited, data, atol=1e-5)


def test_a_recording_returns_where_a_way_up_and_down_does_not(toy, noise_for, counted):
    data, table, velocity = noise_for(2, dtype=torch.float64), sigmas(14).double(), counted(toy(2.0))
    found = last(direct_edit(velocity, velocity, data, table)).x
    assert torch.allclose(found, data, rtol=0, atol=1e-12)
    assert velocity.sigmas == [*table[:-1].flip(0).tolist(), *table[:-1].tolist()]
    other = last(direct_edit(toy(2.0), toy(1.0), data, table)).x
    assert (other - data).abs().max() > 1e-3


def test_a_recording_moves_gaussian_data_by_the_difference_of_means(pair, noise_for):
    data = 0.3 + 0.5 * noise_for(2, dtype=torch.float64)
    edited = last(direct_edit(*pair, data, torch.linspace(1, 0, 101).double())).x
    assert torch.allclose(edited, data + 0.8, atol=0.05)
    with pytest.raises(FlowError, match="must fall"):
        direct_edit(*pair, data, sigmas(4).flip(0))


def test_flow_edit_leaves_out_early_steps_to_change_less(pair, noise_for):
    data = 0.3 + 0.5 * noise_for(2)
    whole, part = (
        last(flow_edit(*pair, data, table, generator=seeded())).x for table in (sigmas(28), sigmas(28)[14:])
    )
    assert 0 < (part - data).abs().mean() < (whole - data).abs().mean()


def test_plain_steps_follow_the_target_alone(pair, noise_for, counted):
    source, target = map(counted, pair)
    data, table = noise_for(2), sigmas(6)
    steps = list(flow_edit(source, target, data, table, generator=seeded(), average=2, plain_steps=2))
    assert (source.calls, target.calls) == (8, 8 + 2)
    assert torch.allclose(steps[-1].x, steps[-2].x - table[-2] * steps[-1].velocity)
    everything = last(flow_edit(source, target, data, table, generator=seeded(), plain_steps=6)).x
    noised = interpolate(data, torch.randn(data.shape, generator=seeded()), table[0])
    assert torch.allclose(everything, solve(pair[1], noised, table), atol=1e-6)


def test_flow_edit_repeats_with_its_generator(pair, noise_for):
    data = noise_for(2)
    first, again, each = (
        last(flow_edit(*pair, data, sigmas(6), generator=g)).x
        for g in (seeded(), seeded(), [seeded(), seeded(1)])
    )
    assert torch.equal(first, again)
    alone = last(flow_edit(*pair, data[1:], sigmas(6), generator=seeded(1))).x
    assert torch.allclose(each[1:], alone, atol=1e-6)


def test_full_control_goes_straight_to_noise_and_back_to_data(gaussian, noise_for):
    data, noise, table = noise_for(2, 1), noise_for(2, 2), sigmas(8)
    up = solve(toward_noise(gaussian, noise, 1.0), data, table.flip(0))
    assert torch.allclose(up, noise, atol=1e-5)
    down = solve(toward_data(gaussian, data, 1.0), up, table)
    assert torch.allclose(down, data, atol=1e-5)


def test_no_control_is_the_flow_itself(gaussian, noise_for):
    x, table = noise_for(2), sigmas(8)
    plain = solve(gaussian, x, table)
    assert torch.allclose(solve(toward_data(gaussian, x, 0.0), x, table), plain)
    up = solve(toward_noise(gaussian, x, 0.0), plain, table.flip(0))
    assert torch.allclose(up, solve(gaussian, plain, table.flip(0)))


def test_control_keeps_the_edit_near_the_data_within_its_interval(pair, noise_for):
    source, target = pair
    data, table = 0.3 + 0.5 * noise_for(2), sigmas(28)
    noise = solve(toward_noise(source, noise_for(2, 3), 0.5), data, table.flip(0))
    distances = [
        (solve(toward_data(target, data, eta, (0.5, 1.0)), noise, table) - data).abs().mean()
        for eta in (0.0, 0.5, 0.9)
    ]
    assert distances[0] > distances[1] > distances[2]
    outside = toward_data(target, data, 0.9, (0.5, 1.0))
    low = torch.full((2,), 0.4)
    assert torch.equal(outside(noise, low), target(noise, low))


def test_bad_requests_are_refused(gaussian, noise_for):
    data = noise_for(2)
    with pytest.raises(FlowError, match="must fall"):
        flow_edit(gaussian, gaussian, data, sigmas(4).flip(0), generator=seeded())
    with pytest.raises(FlowError, match=r"plain_steps 0 \.\.\. 4, got 1 and 5"):
        flow_edit(gaussian, gaussian, data, sigmas(4), generator=seeded(), plain_steps=5)
    with pytest.raises(FlowError, match="average must be at least 1"):
        flow_edit(gaussian, gaussian, data, sigmas(4), generator=seeded(), average=0)
    with pytest.raises(FlowError, match=r"strength must lie in \[0, 1\]"):
        toward_noise(gaussian, data, 1.5)
    with pytest.raises(FlowError, match="interval"):
        toward_data(gaussian, data, 0.5, (0.7, 0.2))
    with pytest.raises(FlowError, match="not finite at step 0"):
        last(euler(lambda x, s: x * torch.nan, data, sigmas(2)))
