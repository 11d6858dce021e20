"""The training objective and its noise levels."""

import math

import pytest
import torch

from flow import FlowError, cfm_loss, sample_sigmas


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_loss_is_zero_for_the_conditional_velocity_and_known_for_zero():
    data, noise, sigma = (
        torch.randn(3, 4, 5, generator=seeded()),
        torch.ones(3, 4, 5),
        torch.tensor([0.0, 0.4, 1.0]),
    )
    assert cfm_loss(lambda x, s: noise - data, data, noise=noise, sigma=sigma) == 0
    loss = cfm_loss(lambda x, s: torch.zeros_like(x), data, noise=noise, sigma=sigma)
    assert loss == pytest.approx(float((noise - data).square().mean()), rel=1e-6)


def test_velocity_sees_the_point_on_the_path():
    data, noise, sigma = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([0.25, 0.75])
    seen = []
    cfm_loss(lambda x, s: seen.append((x, s)) or x, data, noise=noise, sigma=sigma)
    assert torch.equal(seen[0][0], sigma[:, None].expand(2, 3))
    assert torch.equal(seen[0][1], sigma)


def test_same_generator_same_loss_and_gradient_flows():
    weight = torch.tensor(0.5, requires_grad=True)
    data = torch.randn(8, 6, generator=seeded())
    first, second = (cfm_loss(lambda x, s: weight * x, data, generator=seeded(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, cfm_loss(lambda x, s: weight * x, data, generator=seeded(8)))
    first.backward()
    assert weight.grad is not None


def test_loss_of_a_bf16_model_is_taken_in_float32():
    data, noise = torch.zeros(1, 2), torch.full((1, 2), 1.001)
    loss = cfm_loss(lambda x, s: noise.bfloat16(), data, noise=noise, sigma=torch.tensor([0.5]))
    assert loss.dtype == torch.float32
    assert loss == pytest.approx(0.001**2, rel=1e-3)  # in bf16 the difference would vanish


def test_minimiser_is_the_mean_velocity():
    # For data ~ N(0, 1) the best linear answer a·x at one sigma is Cov(noise - data, x) / Var(x).
    data = torch.randn(200_000, 1, generator=seeded(1))
    sigma = torch.full((len(data),), 0.3)
    best = (0.3 - 0.7) / (0.3**2 + 0.7**2)
    losses = [
        float(cfm_loss(lambda x, s, a=a: a * x, data, sigma=sigma, generator=seeded(2)))
        for a in (best - 0.1, best, best + 0.1)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_logit_normal_has_its_mean_and_spread():
    logits = torch.logit(sample_sigmas(100_000, seeded(), location=0.5, scale=0.7).double())
    assert logits.mean() == pytest.approx(0.5, abs=0.01)
    assert logits.std() == pytest.approx(0.7, abs=0.01)


def test_shift_moves_the_median_as_the_schedule_does():
    drawn = sample_sigmas(100_001, seeded(), schedule_shift=3.0)
    assert drawn.median() == pytest.approx(0.75, abs=0.005)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29])
def test_mode_density_keeps_to_the_unit_interval(scale):
    drawn = sample_sigmas(10_000, seeded(), density="mode", scale=scale)
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_cosmap_has_the_density_of_the_paper():
    # pi(t) = 2 / (pi - 2 pi t + 2 pi t^2) (eq. 21), whose mass below 1/4 is 2/pi * atan(1/3).
    drawn = sample_sigmas(200_000, seeded(), density="cosmap")
    assert (drawn < 0.25).float().mean() == pytest.approx(2 / math.pi * math.atan(1 / 3), abs=0.005)


def test_uniform_is_uniform():
    drawn = sample_sigmas(100_000, seeded(), density="uniform").sort().values
    assert (drawn - torch.linspace(0, 1, 100_000)).abs().max() < 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cfm_loss(lambda x, s: x, torch.zeros(2, 3)), "generator="),
        (lambda: cfm_loss(lambda x, s: x, torch.zeros(2, 3), noise=torch.zeros(2, 3)), "generator="),
        (
            lambda: cfm_loss(lambda x, s: x[:1], torch.zeros(2, 3), generator=seeded()),
            r"must return \(2, 3\)",
        ),
        (
            lambda: cfm_loss(lambda x, s: x, torch.zeros(2, 3), noise=torch.zeros(3), generator=seeded()),
            "noise must be",
        ),
        (lambda: sample_sigmas(2, seeded(), density="beta"), "logit_normal"),
        (lambda: sample_sigmas(2, seeded(), density="mode", scale=2.0), "scale of density mode"),
        (lambda: sample_sigmas(2, seeded(), scale=-1.0), "scale of density logit_normal"),
    ],
)
def test_bad_requests_are_named(call, message):
    with pytest.raises(FlowError, match=message):
        call()
