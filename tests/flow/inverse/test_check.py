"""The report says what the noise is worth, and what makes a generation worth inverting."""

import torch

from flow import apg, closeness, guided, inversion, sigmas, solve

TABLE = sigmas(28)


def test_the_noise_is_worth_what_the_report_says_at_least(toy, noise_for):
    noise = noise_for(6)
    data = solve(toy(), noise, TABLE)
    found = inversion(toy(), data, TABLE, accuracy=1e-4)
    coarse = inversion(toy(), data, TABLE, accuracy=1e-3, check=False)
    size = float(noise.max() - noise.min())
    true, of_coarse = (closeness(one.noise, noise, size).psnr for one in (found, coarse))
    assert torch.tensor(found.decibels).sub(of_coarse).abs().max() < 1
    assert (true > torch.tensor(found.decibels) + 15).all()
    assert found.report.evaluations <= 4.5 * 28
    assert found.report.problems == ()


def test_a_flow_that_contracts_too_strongly_is_told():
    def velocity(x, sigma):
        level = sigma.reshape(-1, 1).to(x)
        denoised = torch.cat([1 - 6 * torch.sin(x[:, :32] - 1), 0 * x[:, 32:]], 1)  # D' = -6 where it ends
        return (x - denoised) / level

    table = torch.cat([0.88 ** torch.arange(20.0), torch.zeros(1)])[:-1]
    noise = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    found = inversion(velocity, solve(velocity, noise, table), table, accuracy=1e-4)
    assert found.report.converged
    assert max(found.decibels) < 40
    assert sum("two ways up" in line for line in found.report.problems) == 2
    assert (closeness(found.noise, noise).psnr < 60).all()


def test_guidance_at_high_noise_alone_and_limited_can_be_inverted(toy, noise_for):
    noise, accuracy = noise_for(16, dtype=torch.float64).float(), 1e-4
    cond, uncond = toy(1.0, spread=0.03), toy(0.0, spread=0.03)
    found = {}
    for name, options in {"plain": {}, "limited": {"interval": (0.7, 1.0), "combine": apg(1.0, 1.0)}}.items():
        velocity = guided(cond, uncond, 7.0, **options)
        found[name] = inversion(velocity, solve(velocity, noise, TABLE), TABLE, accuracy=accuracy)
    worst = {name: float(closeness(one.noise, noise).psnr.min()) for name, one in found.items()}
    assert worst["plain"] < 55
    assert worst["limited"] > 90
    assert found["limited"].report.ambiguous == ()
    assert found["limited"].report.evaluations < found["plain"].report.evaluations
