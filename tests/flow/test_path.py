"""The straight path and what is read off it."""

import torch

from flow import denoised, interpolate, target


def test_ends_of_the_path_are_data_and_noise():
    data, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(interpolate(data, noise, torch.zeros(2)), data)
    assert torch.equal(interpolate(data, noise, torch.ones(2)), noise)
    assert torch.equal(interpolate(data, noise, torch.tensor(1.0)), noise)


def test_velocity_is_the_derivative_along_the_path():
    data, noise = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    low, high = torch.tensor([0.2, 0.5]), torch.tensor([0.3, 0.6])
    slope = (interpolate(data, noise, high) - interpolate(data, noise, low)) / (high - low).double()[:, None]
    assert torch.allclose(slope, target(data, noise), atol=1e-12)


def test_denoised_finds_the_data_from_any_level():
    data, noise = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    found = denoised(interpolate(data, noise, sigma), target(data, noise), sigma)
    assert torch.allclose(found, data, atol=1e-14)
