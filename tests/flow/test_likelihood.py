"""The likelihood by the change of variables, where it is known."""

import math

import pytest
import torch

from flow import PATHS, FlowError, VPCosine, log_likelihood, probability_flow, sigmas

UP = torch.linspace(0, 1, 21, dtype=torch.float64)


def normal_log_prob(x, mean, std):
    return (-((x - mean) / std).square() / 2 - math.log(std) - math.log(2 * math.pi) / 2).flatten(1).sum(1)


@pytest.mark.parametrize("options", [{}, {"solver": "dopri5", "rtol": 1e-8, "atol": 1e-9}, {"solver": "ab2"}])
def test_density_of_a_normal_distribution(gaussian, noise_for, options):
    data = gaussian.exact(noise_for(3, dtype=torch.float64), 1, 0)
    found = log_likelihood(gaussian, data, UP, **options)
    close = 0.5 if options.get("solver") == "ab2" else 1e-4
    assert torch.allclose(found.log_prob, normal_log_prob(data, 0.3, 0.5), atol=close)
    assert torch.allclose(found.noise, gaussian.exact(data, 0, 1), atol=close)
    assert torch.allclose(found.bits_per_dim, -found.log_prob / 64 / math.log(2))


def test_density_of_a_mixture_integrates_to_one_and_is_the_true_one(mixture):
    means = torch.tensor([[-1.0, 0.5], [1.5, -0.5]], dtype=torch.float64)
    axis = torch.linspace(-4, 4, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        found = log_likelihood(mixture(means, 0.4), grid, UP)
    true = torch.logsumexp(torch.stack([normal_log_prob(grid, mean, 0.4) for mean in means]), 0) - math.log(2)
    inside = true > -20
    assert torch.allclose(found.log_prob[inside], true[inside], atol=2e-2)
    assert float(found.log_prob.exp().sum()) * 0.2**2 == pytest.approx(1, abs=1e-3)


def test_the_estimate_is_right_in_the_mean(gaussian, noise_for):
    def sheared(x, sigma):  # a Jacobian with entries off the diagonal, so that signs matter
        return gaussian(x, sigma) + 0.3 * x.flip(1)

    data = noise_for(1, dtype=torch.float64)[:, 0, 0].expand(512, 4)
    exact = log_likelihood(sheared, data[:1], UP).log_prob
    generator = torch.Generator().manual_seed(0)
    found = log_likelihood(sheared, data, UP, trace="hutchinson", generator=generator)
    spread = float(found.log_prob.std())
    assert spread > 0.01
    assert float(found.log_prob.mean()) == pytest.approx(float(exact), abs=4 * spread / math.sqrt(512))


def test_a_trace_that_is_diagonal_is_estimated_without_error(gaussian, noise_for):
    data = noise_for(2, dtype=torch.float64)[:, 0, 0]
    generator = torch.Generator().manual_seed(0)
    found = log_likelihood(gaussian, data, UP, trace="hutchinson", generator=generator)
    assert torch.allclose(found.log_prob, log_likelihood(gaussian, data, UP).log_prob)


def test_other_paths_have_their_own_prior():
    mean, std, path = 0.7, 1.4, PATHS["ve"]

    def noise(x, sigma):
        a, n, _, _ = path.at(sigma, x)
        return n * (x - a * mean) / (a.square() * std**2 + n.square())

    data = torch.randn(4, 2, dtype=torch.float64)
    found = log_likelihood(probability_flow(noise, "noise", path), data, UP, path=path)
    assert torch.allclose(
        found.log_prob, normal_log_prob(data, mean, std), atol=0.1
    )  # 1/50 of the data is left
    curved = probability_flow(lambda x, sigma: torch.zeros_like(x), "data", VPCosine())
    with pytest.raises(FlowError, match="at sigma 0"):
        log_likelihood(curved, data, UP, path="vp_cosine")


def test_it_can_be_maximised(noise_for):
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    data = 0.5 * noise_for(dtype=torch.float64)
    loss = -log_likelihood(
        lambda x, sigma: weight * x, data, sigmas(4, preset="linear").flip(0)
    ).log_prob.mean()
    loss.backward()
    assert weight.grad is not None
    assert weight.grad < 0  # data are narrower than noise, so the flow must grow upward
    with torch.no_grad():
        found = log_likelihood(lambda x, sigma: weight * x, data, UP)
    assert not found.log_prob.requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"sigmas": UP.flip(0)}, "rise to 1"),
        ({"trace": "skilling"}, "exact or hutchinson"),
        ({"trace": "hutchinson"}, "needs a generator"),
        ({"generator": torch.Generator()}, "needs a generator"),
        ({"solver": "ddim"}, "no solver"),
    ],
)
def test_bad_requests_are_named(call, message, gaussian, noise_for):
    with pytest.raises(FlowError, match=message):
        log_likelihood(gaussian, noise_for(), **({"sigmas": UP} | call))


def test_a_velocity_without_gradient_is_refused(noise_for, gaussian):
    with pytest.raises(FlowError, match="no gradient in x"):
        log_likelihood(torch.no_grad()(gaussian.__call__), noise_for(), UP)
