"""Reflow against its closed forms in one dimension."""

import pytest
import torch
from safetensors.torch import load_file

from flow import FlowError, cfm_loss, first_step_loss, reflow_pairs, sigmas, solve, straightness

TABLE = torch.linspace(1, 0, 1001, dtype=torch.float64)


@pytest.fixture(scope="module")
def goldens(shared_reference):
    return load_file(shared_reference / "training" / "reflow.safetensors")


def straight(x, sigma):
    """What a second flow learns from the first's pairs, where noise z ends at 0.8 + 0.4 z."""
    keep = sigma.reshape(-1, 1).to(x)
    noise = (x - 0.8 * (1 - keep)) / (0.4 + 0.6 * keep)
    return noise - (0.8 + 0.4 * noise)


def test_the_first_flow_bends_and_the_second_is_straight(goldens, gaussian):
    first = type(gaussian)(0.8, 0.4)
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (
        noise / noise.square().mean().sqrt()
    )  # S of normal data is in proportion to the square of the noise
    noise = noise - noise.mean()
    found = [float(straightness(flow, noise, TABLE).mean()) for flow in (first, straight)]
    stored = goldens["gauss/straightness"].tolist()
    assert found[0] == pytest.approx(stored[0], rel=0.02)
    assert found[1] == pytest.approx(stored[1], abs=1e-12)


def test_ends_by_euler_are_the_references(goldens, gaussian):
    first, noise = type(gaussian)(0.8, 0.4), goldens["gauss/noise"][:, None]
    for steps in (1, 2, 4, 8, 32):
        table = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        assert torch.allclose(solve(first, noise, table)[:, 0], goldens[f"gauss/flow1/euler_{steps}"])
        assert torch.allclose(
            solve(straight, noise, table)[:, 0], goldens["gauss/flow2/x"][-1]
        ) or torch.allclose(solve(straight, noise, table)[:, 0], goldens["gauss/flow2/x"][0])


def test_pairs_are_noise_and_where_the_flow_ends(gaussian):
    noises = [torch.randn(3, 2), torch.randn(2, 2)]
    pairs = list(reflow_pairs(gaussian, noises, sigmas(50, preset="linear"), "heun"))
    for pair, noise in zip(pairs, noises, strict=True):
        assert pair.noise is noise
        assert torch.allclose(pair.data, gaussian.exact(noise, 1, 0), atol=1e-3)
        assert not pair.data.requires_grad


def test_the_loss_of_the_straight_flow_on_its_own_pairs_is_its_straightness():
    noise = torch.randn(64, 1, dtype=torch.float64)
    data = 0.8 + 0.4 * noise
    loss = cfm_loss(straight, data, noise=noise, generator=torch.Generator().manual_seed(0))
    assert loss < 1e-12
    assert first_step_loss(straight, noise, data) < 1e-24
    assert first_step_loss(lambda x, s: 0 * x, noise, data) == pytest.approx(
        float((noise - data).square().mean())
    )


def test_straightness_is_measured_all_the_way(gaussian):
    with pytest.raises(FlowError, match=r"from 1 to 0, got 1 to 0\.5"):
        straightness(gaussian, torch.ones(1, 1), torch.tensor([1.0, 0.5]))
