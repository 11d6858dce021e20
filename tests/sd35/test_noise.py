"""Noise is a function of the seed alone."""

import torch

from sd35 import draw_noise
from sd35.noise import generators


def test_a_sample_does_not_depend_on_its_batch() -> None:
    together = draw_noise(generators([3, 4, 5]), (16, 4, 6))
    alone = draw_noise(generators([4]), (16, 4, 6))
    assert together.shape == (3, 16, 4, 6)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])


def test_the_numbers_of_a_seed_stay_what_they_are() -> None:
    """Pictures are repeated by their seeds: these are torch's numbers, and a change of order would show."""
    noise = draw_noise(generators([0]), (16, 2, 2)).flatten()
    expected = torch.randn(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise, expected)
    assert torch.allclose(noise[:3], torch.tensor([-1.1258, -1.1524, -0.2506]), atol=1e-4)


def test_neither_the_global_seed_nor_the_default_dtype_matter() -> None:
    first = draw_noise(generators([1]), (16, 2, 2))
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        second = draw_noise(generators([1]), (16, 2, 2))
    finally:
        torch.set_default_dtype(torch.float32)
    assert second.dtype == torch.float32
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
