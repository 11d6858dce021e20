"""The SDE has the ODE's marginals and knows the probability of what it drew."""

import math
from itertools import pairwise

import pytest
import torch

from flow import FlowError, integrate, sde, sigmas, solve, transition


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.1), (0.1, 0.9)])
@pytest.mark.parametrize("noise_level", [0.3, 0.7])
def test_marginals_are_those_of_the_ode(gaussian, start, end, noise_level):
    mean, std = gaussian.moments(start)
    x = mean + std * torch.randn(10_000, 1, generator=seeded())
    table = torch.linspace(start, end, 101)
    for step in sde(gaussian, x, table, generator=seeded(1), noise_level=noise_level):
        if step.number % 25 == 24:
            mean, std = gaussian.moments(float(step.sigma_next))
            assert step.x.mean() == pytest.approx(mean, abs=0.03)
            assert step.x.std() == pytest.approx(std, rel=0.04)


@pytest.mark.parametrize(("start", "end"), [(0.9, 0.0), (0.0, 0.9)])
def test_weak_order_is_one_away_from_pure_noise(gaussian, start, end):
    errors = []
    for steps in (64, 128, 256):
        mean, std = (torch.tensor(moment, dtype=torch.float64) for moment in gaussian.moments(start))
        for sigma, sigma_next in pairwise(torch.linspace(start, end, steps + 1, dtype=torch.float64)):
            x = torch.stack([mean, mean + std])[
                :, None
            ]  # a step is affine in x, so two points tell its moments
            ends = transition(gaussian(x, sigma.expand(2)), x, sigma, sigma_next)
            mean, std = ends.mean[0, 0], (ends.mean.diff(dim=0)[0, 0] ** 2 + ends.std**2).sqrt()
        true_mean, true_std = gaussian.moments(end)
        errors.append(float((mean - true_mean).abs() + (std - true_std).abs()))
    assert math.log2(errors[0] / errors[-1]) / 2 > 0.9


def test_noise_is_real_and_seeded(gaussian, noise_for):
    x = noise_for()
    first, again, other = (solve(gaussian, x, sigmas(8), "sde", generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.1


def test_a_generator_each_makes_samples_independent_of_their_batch(gaussian, noise_for):
    x = noise_for(3)
    together = solve(gaussian, x, sigmas(4), "sde", generator=[seeded(s) for s in range(3)])
    alone = solve(gaussian, x[2:], sigmas(4), "sde", generator=seeded(2))
    assert torch.allclose(together[2:], alone, atol=1e-6)


def test_log_prob_is_that_of_the_normal_distribution(gaussian, noise_for):
    x, table = noise_for(2, dtype=torch.float64), sigmas(6)
    total = torch.zeros(2, dtype=torch.float64)
    for step in sde(gaussian, x, table, generator=seeded()):
        ends = transition(gaussian(x, step.sigma.expand(2)), x, step.sigma, step.sigma_next)
        expected = torch.distributions.Normal(ends.mean, ends.std).log_prob(step.x).flatten(1).sum(1)
        assert torch.allclose(step.log_prob, expected)
        assert torch.isfinite(step.log_prob).all()
        total, x = total + step.log_prob, step.x
    whole = integrate(gaussian, noise_for(2, dtype=torch.float64), table, "sde", generator=seeded())
    assert torch.allclose(whole.log_prob, total)


def test_gradient_of_log_prob_is_the_score(gaussian, noise_for):
    shift = torch.zeros((), requires_grad=True, dtype=torch.float64)
    table = torch.tensor([0.8, 0.7], dtype=torch.float64)
    x = noise_for(1, dtype=torch.float64)
    (step,) = sde(lambda x, s: gaussian(x, s) + shift, x, table, generator=seeded())
    (gradient,) = torch.autograd.grad(step.log_prob.sum(), shift)
    ends = transition(step.velocity, x, step.sigma, step.sigma_next)
    h, a = -0.1, 0.7
    slope = h - abs(h) * a**2 / (1 - 0.8) / 2 * (1 - 0.8)  # d mean / d shift
    expected = ((step.x - ends.mean) / ends.std**2 * slope).sum()
    assert gradient == pytest.approx(float(expected.detach()), rel=1e-6)


def test_both_ends_of_the_range_are_finite(noise_for):
    x = noise_for(1)
    for sigma, sigma_next in ((1.0, 0.9), (0.0, 0.1), (1.0, 0.0), (0.01, 0.0), (0.9, 1.0)):
        ends = transition(x, x, torch.tensor(sigma), torch.tensor(sigma_next))
        assert torch.isfinite(ends.mean).all()
        assert 0 < ends.std < math.inf


def test_bad_options_are_refused(gaussian, noise_for):
    with pytest.raises(FlowError, match="noise_level must be positive"):
        sde(gaussian, noise_for(), sigmas(4), generator=seeded(), noise_level=0.0)
    with pytest.raises(FlowError, match="each of 4 samples; got 2"):
        sde(gaussian, noise_for(), sigmas(4), generator=[seeded(), seeded()])
    with pytest.raises(FlowError, match="'sde' draws noise at every step: pass generator="):
        solve(gaussian, noise_for(), sigmas(4), "sde")
