"""Bit-exact generation comes back with equal bits, says what it needs, and saves little."""

import pytest
import torch

from flow import FlowError, bitexact, closeness, integrate, invert, on_grid, sigmas, solve
from flow.solvers.bitexact import bit_sums, compact, from_grid, to_grid, undo_bitexact

CASES = [  # steps, schedule shift, preset, guidance, batch, dtype of the network
    (28, 3.0, "reference", 4.5, 100, None),
    (28, 3.0, "reference", 4.5, 16, torch.bfloat16),
    (8, 3.0, "diffusers", 7.0, 1, torch.bfloat16),
    (14, 1.0, "linear", 1.0, 7, torch.float16),
    (50, 6.0, "linear", 12.0, 10, torch.bfloat16),
    (1, 3.0, "reference", 4.5, 2, None),
    (4, 3.0, "reference", 1.0, 5, torch.bfloat16),
]


@pytest.mark.parametrize(("steps", "shift", "preset", "guidance", "batch", "dtype"), CASES)
def test_a_hundred_seeds_come_back_with_equal_bits(
    steps, shift, preset, guidance, batch, dtype, toy, noise_for
):
    velocity, table = toy(guidance, dtype), sigmas(steps, shift, preset)
    for noise in torch.cat([noise_for(1, seed) for seed in range(100)]).split(batch):
        there = integrate(velocity, noise, table, "bitexact")
        found = invert(velocity, there.x, table, solver="bitexact", companion=there.companion)
        assert torch.equal(found.view(torch.int32), noise.view(torch.int32))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("bits", [8, 20, 36])
def test_states_of_any_size_come_back(scale, bits, toy, noise_for):
    noise, table = noise_for(2) * scale, sigmas(6)
    there = integrate(toy(), noise, table, "bitexact", bits=bits)
    found = invert(toy(), there.x, table, solver="bitexact", companion=there.companion, bits=bits)
    assert torch.equal(found, noise)


def test_float64_comes_back_too(toy, noise_for):
    noise, table = noise_for(2, dtype=torch.float64), sigmas(8)
    there = integrate(toy(), noise, table, "bitexact")
    assert torch.equal(invert(toy(), there.x, table, solver="bitexact", companion=there.companion), noise)


def test_the_grid_costs_far_less_than_the_solver(toy, noise_for):
    noise, table = noise_for(8), sigmas(28)
    rounded, smooth = (solve(toy(), noise, table, name) for name in ("bitexact", "reversible_heun"))
    true = solve(toy(), noise.double(), torch.linspace(1, 0, 101), "rk4")
    assert closeness(rounded, smooth).total_mse < 1e-4 * closeness(smooth, true).total_mse


def test_noise_on_the_grid_leaves_a_small_companion(toy, noise_for):
    noise = on_grid(noise_for(2))
    assert (noise - noise_for(2)).abs().max() <= 2**-21
    tensors = integrate(toy(), noise, sigmas(28), "bitexact").companion.tensors
    assert set(tensors) == {"z", "check"}
    assert tensors["z"].dtype == torch.int32
    there = integrate(toy(), noise, sigmas(28), "bitexact")
    assert torch.equal(
        invert(toy(), there.x, sigmas(28), solver="bitexact", companion=there.companion), noise
    )


def test_a_velocity_that_does_not_repeat_itself_is_found_out_before_the_first_step(toy, noise_for):
    generator = torch.Generator().manual_seed(0)

    def dropout(x, sigma):
        return toy()(x, sigma) * (1 + 1e-6 * torch.rand(x.shape, generator=generator))

    with pytest.raises(FlowError, match=r"asked twice at sigma 1.*same device"):
        next(bitexact(dropout, noise_for(), sigmas(4)))


def test_another_environment_is_found_out_at_the_first_velocity(toy, noise_for):
    table = sigmas(6)
    *_, end = bitexact(toy(), noise_for(3), table)

    def other_kernels(x, sigma):
        v = toy()(x, sigma)
        v[1, 0, 0, 0] = torch.nextafter(v[1, 0, 0, 0], torch.tensor(9.0))  # one bit of one value
        return v

    with pytest.raises(FlowError, match=r"not the generation's, for samples \[1\].*batch"):
        next(undo_bitexact(other_kernels, end.x, end.companion, table))


def test_a_difference_later_on_is_found_out_at_the_end(toy, noise_for):
    table = sigmas(6)
    *_, end = bitexact(toy(), noise_for(2), table)

    def drifting(x, sigma):
        return toy()(x, sigma) * (1.001 if sigma[0] > 0.9 else 1)

    with pytest.raises(FlowError, match="did not end where"):
        list(undo_bitexact(drifting, end.x, end.companion, table))


def test_states_beyond_the_grid_are_refused(noise_for):
    with pytest.raises(FlowError, match=r"too large for a grid of 2\^-40; use fewer bits"):
        next(bitexact(lambda x, sigma: x, noise_for() * 1e4, sigmas(4), bits=40))


def test_integers_take_the_least_room():
    for largest, dtype in (
        (127, torch.int8),
        (128, torch.int16),
        (40_000, torch.int32),
        (2**40, torch.int64),
    ):
        assert compact(torch.tensor([0, largest])).dtype == dtype


def test_grid_is_exact_where_it_says(noise_for):
    x = to_grid(noise_for(64), 20)
    assert torch.equal(to_grid(from_grid(x, 20, torch.zeros(1)), 20), x)


def test_bit_sums_see_one_bit_and_an_exchange():
    m = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    changed, exchanged = m.clone(), m.clone()
    changed[1, 7] = torch.nextafter(m[1, 7], torch.tensor(9.0))
    exchanged[0, [3, 4]] = m[0, [4, 3]]
    assert (bit_sums(changed) == bit_sums(m)).tolist() == [True, False]
    assert (bit_sums(exchanged) == bit_sums(m)).tolist() == [False, True]
