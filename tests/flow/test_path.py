"""Paths between data and noise, against closed forms and the peers' own numbers."""

import pytest
import torch

from flow import (
    PATHS,
    VE,
    FlowError,
    Path,
    Rectified,
    VPCosine,
    VPLinear,
    VPLinearAlpha,
    cfm_loss,
    convert,
    denoised,
    interpolate,
    target,
)

EVERY = [*PATHS.values(), VPCosine(offset=0.008), Rectified(0.01)]


def test_paths_are_the_references(path_goldens, stored):
    (name, path), sigma = stored, path_goldens["in/level"]
    scales = path.scales(sigma)
    for found, key in zip(scales, ("alpha", "noise_scale", "d_alpha", "d_noise_scale"), strict=True):
        assert torch.allclose(found, path_goldens[f"{name}/{key}"], rtol=1e-12, atol=1e-15), key
    data, noise = path_goldens["in/data"], path_goldens["in/noise"]
    for row, level in enumerate(sigma):
        x = path.interpolate(data, noise, level)
        assert torch.allclose(x, path_goldens[f"{name}/x"][row], rtol=1e-12, atol=1e-14)
        velocity = path.target(data, noise, level)
        assert torch.allclose(velocity, path_goldens[f"{name}/velocity"][row], rtol=1e-12, atol=1e-14)
    level, scale = path.straightened(sigma)
    assert torch.allclose(level, path_goldens[f"{name}/as_ot_sigma"], rtol=1e-12)
    assert torch.allclose(scale, path_goldens[f"{name}/as_ot_scale"], rtol=1e-12)
    f, g2 = path.diffusion(sigma)
    assert torch.allclose(f, path_goldens[f"{name}/sde_f"], rtol=1e-11, atol=1e-13)
    assert torch.allclose(g2, path_goldens[f"{name}/sde_g2"], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("path", EVERY, ids=str)
def test_rates_are_the_derivatives(path):
    sigma = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, requires_grad=True)
    scales = path.scales(sigma)
    for value, rate in ((scales.data, scales.data_rate), (scales.noise, scales.noise_rate)):
        (slope,) = torch.autograd.grad(value.sum() + 0 * sigma.sum(), sigma, retain_graph=True)
        assert torch.allclose(rate, slope, rtol=1e-11)


def test_boundary_conditions():
    ends = {name: [(float(s.data), float(s.noise)) for s in path.ends] for name, path in PATHS.items()}
    assert ends["rectified"] == ends["vp_cosine"] == ends["vp_linear_alpha"] == [(1, 0), (0, 1)]
    assert ends["vp_linear"][0] == (1, 0)
    assert ends["vp_linear"][1] == pytest.approx((0.00657, 0.99998), abs=1e-5)
    assert [noise for _, noise in ends["ve"]] == pytest.approx([0.01, 50.0])
    assert Rectified(0.01).ends[0].noise == pytest.approx(0.01)


def test_only_the_prior_of_ve_is_not_standard_normal():
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for name, path in PATHS.items():
        assert torch.allclose(path.prior(noise), (50 if name == "ve" else 1) * noise, rtol=1e-4)


@pytest.mark.parametrize("path", [PATHS["rectified"], PATHS["vp_cosine"], PATHS["vp_linear_alpha"]], ids=str)
def test_ends_of_a_path_are_data_and_noise_to_the_last_bit(path: Path):
    data, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(path.interpolate(data, noise, torch.zeros(2)), data)
    assert torch.equal(path.interpolate(data, noise, torch.ones(2)), noise)
    assert torch.equal(path.interpolate(data, noise, 1.0), noise)


def test_the_functions_are_those_of_the_rectified_path():
    data, noise = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    sigma = torch.tensor([0.2, 0.5])
    assert torch.equal(interpolate(data, noise, sigma), PATHS["rectified"].interpolate(data, noise, sigma))
    assert torch.equal(target(data, noise), PATHS["rectified"].target(data, noise, sigma))


def test_denoised_finds_the_data_from_any_level():
    data, noise = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    found = denoised(interpolate(data, noise, sigma), target(data, noise), sigma)
    assert torch.allclose(found, data, atol=1e-14)


@pytest.mark.parametrize("sigma", [0.3, torch.tensor(0.3), torch.tensor([0.3, 0.3])])
def test_one_level_serves_the_batch(sigma):
    data, noise = torch.randn(2, 3), torch.randn(2, 3)
    expected = 0.7 * data + 0.3 * noise
    assert torch.allclose(interpolate(data, noise, sigma), expected)
    assert torch.allclose(denoised(expected, noise - data, sigma), data, atol=1e-6)
    found = convert(noise - data, expected, sigma, target="data")
    assert torch.allclose(found, data, atol=1e-6)
    assert cfm_loss(lambda x, s: noise - data, data, noise=noise, sigma=sigma) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Rectified(1.0), "sigma_min"),
        (lambda: VPCosine(-0.1), "offset"),
        (lambda: VPLinear(1.0, 0.5), "beta_min < beta_max"),
        (lambda: VE(0.0), "sigma_min < sigma_max"),
        (lambda: convert(torch.ones(1, 2), torch.ones(1, 2), 0.5, path="cosine"), "rectified, vp_cosine"),
    ],
)
def test_bad_paths_are_named(call, message):
    with pytest.raises(FlowError, match=message):
        call()


def test_a_path_of_the_callers_own_is_taken():
    assert VPLinearAlpha() == PATHS["vp_linear_alpha"]
    assert VPLinear(0.1, 10.0) != PATHS["vp_linear"]
