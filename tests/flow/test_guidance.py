"""Guidance: velocities in, a velocity out."""

import pytest
import torch

from flow import (
    FlowError,
    apg,
    cfg_zero,
    denoised,
    guide,
    guided,
    rescale,
    sigmas,
    solve,
    threshold,
    zero_start,
)


def test_guide_is_the_formula():
    cond, uncond = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 3.0]])
    assert torch.equal(guide(cond, uncond, 3.0), torch.tensor([[2.0, 0.0]]))
    assert torch.equal(guide(cond, uncond, 1.0), cond)
    assert torch.equal(guide(cond, uncond, 0.0), uncond)


def test_guidance_of_velocities_is_guidance_of_denoised_states():
    g = torch.Generator().manual_seed(0)
    x, cond, uncond = (torch.randn(2, 4, 3, generator=g, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.3, 0.9])
    in_denoised = guide(denoised(x, cond, sigma), denoised(x, uncond, sigma), 4.5)
    assert torch.allclose(denoised(x, guide(cond, uncond, 4.5), sigma), in_denoised, atol=1e-12)


def test_guidance_widens_low_precision():
    cond, uncond = torch.tensor([[1.0]]).bfloat16(), torch.tensor([[1.0 + 2**-7]]).bfloat16()
    guided = guide(cond, uncond, 4.7)
    assert guided.dtype == torch.float32
    assert guided.item() == pytest.approx(1 - 3.7 * 2**-7, rel=1e-6)


def test_shapes_that_differ_are_named():
    with pytest.raises(FlowError, match=r"\(1, 2\) and \(2, 2\)"):
        guide(torch.zeros(1, 2), torch.zeros(2, 2), 2.0)


SIGMA = torch.tensor([0.8, 0.3])


@pytest.fixture
def three():
    """x, a conditional and an unconditional velocity, (2, 4, 3), float64."""
    g = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, 4, 3, generator=g, dtype=torch.float64) for _ in range(3))


def constant(v, calls):
    return lambda x, sigma: calls.append(float(sigma[0])) or v


def test_scale_one_costs_one_evaluation(three):
    x, cond, uncond = three
    conds, unconds = [], []
    velocity = guided(constant(cond, conds), constant(uncond, unconds), 1.0)
    assert torch.equal(velocity(x, SIGMA), cond)
    assert (len(conds), len(unconds)) == (1, 0)
    velocity = guided(constant(cond, conds), constant(uncond, unconds), 3.0)
    assert torch.equal(velocity(x, SIGMA), guide(cond, uncond, 3.0))
    assert (len(conds), len(unconds)) == (2, 1)


def test_both_halves_may_be_one_batch(three):
    x, cond, uncond = three
    calls = []
    velocity = guided(
        constant(cond, calls), constant(uncond, calls), 4.5, together=lambda x, sigma: (cond, uncond)
    )
    assert torch.equal(velocity(x, SIGMA), guide(cond, uncond, 4.5))
    assert calls == []


def test_interval_guides_inside_only_and_saves_outside(three):
    x, cond, uncond = three
    unconds = []
    velocity = guided(constant(cond, []), constant(uncond, unconds), 4.5, interval=(0.2, 0.7))
    mixed = velocity(x, SIGMA)
    assert torch.equal(mixed[0], cond[0])
    assert torch.equal(mixed[1], guide(cond, uncond, 4.5)[1])
    assert torch.equal(velocity(x, torch.tensor([0.9, 0.8])), cond)
    assert len(unconds) == 1


def test_rescale_restores_the_spread(three):
    x, cond, uncond = three
    v = guide(cond, uncond, 6.0)
    full = rescale(1.0)(v, cond, x, SIGMA)
    assert torch.allclose(full.flatten(1).std(1), cond.flatten(1).std(1))
    assert torch.equal(rescale(0.0)(v, cond, x, SIGMA), v)
    half = rescale(0.5)(v, cond, x, SIGMA)
    assert torch.allclose(half, (full + v) / 2)


def test_threshold_squeezes_what_overshoots_and_nothing_else(three):
    x, cond, uncond = three
    v = guide(cond, uncond, 6.0)
    squeezed = denoised(x, threshold(1.0, 1.5)(v, cond, x, SIGMA), SIGMA)
    original = denoised(x, v, SIGMA)
    assert squeezed.abs().max() <= 1.5 + 1e-9
    for got, was in zip(squeezed, original, strict=True):
        assert torch.allclose(got, was * 1.5 / was.abs().max().clamp_min(1.5))
    assert torch.allclose(threshold(0.9, 1e3)(v, cond, x, SIGMA), v)
    at_zero = threshold(0.9, 0.1)(v, cond, x, torch.zeros(2))
    assert torch.equal(at_zero, v)


def test_adjustments_take_part_only_where_guidance_does(three):
    x, cond, uncond = three

    def bounded(scale, interval=(0.0, 1.0)):
        pair = constant(cond, []), constant(uncond, [])
        return guided(*pair, scale, adjust=[threshold(1.0, 0.1)], interval=interval)(x, SIGMA)

    assert denoised(x, bounded(6.0), SIGMA).abs().max() <= 0.1 + 1e-9
    assert torch.equal(bounded(1.0), cond)
    assert torch.equal(bounded(6.0, interval=(0.4, 0.5)), cond)


def test_threshold_takes_the_percentile():
    v = -torch.arange(1.0, 11.0)[None]  # denoised 1 ... 10 at sigma 1 and x 0
    out = denoised(
        torch.zeros(1, 10), threshold(0.8, 1.0)(v, v, torch.zeros(1, 10), torch.ones(1)), torch.ones(1)
    )
    assert torch.allclose(out, torch.arange(1.0, 11.0).clamp(max=8) / 8)


def test_cfg_zero_fits_the_unconditional_velocity_first(three):
    x, cond, uncond = three
    v = cfg_zero(cond, uncond, 4.0, x, SIGMA)
    for i in range(2):
        fit = (cond[i] * uncond[i]).sum() / uncond[i].square().sum()
        assert torch.allclose(v[i], fit * uncond[i] + 4 * (cond[i] - fit * uncond[i]))
    assert torch.allclose(cfg_zero(2 * cond, cond, 9.0, x, SIGMA), 2 * cond)  # parallel: nothing to push


def test_zero_start_stands_still_without_asking(three):
    x, cond, _ = three
    calls = []
    velocity = zero_start(constant(cond, calls), above=0.5)
    assert torch.equal(velocity(x, torch.tensor([0.9, 0.8])), torch.zeros_like(x))
    assert calls == []
    mixed = velocity(x, SIGMA)
    assert torch.equal(mixed[0], torch.zeros_like(x[0]))
    assert torch.equal(mixed[1], cond[1])


def test_apg_without_projection_is_plain_guidance(three):
    x, cond, uncond = three
    assert torch.allclose(apg(parallel=1.0)(cond, uncond, 4.5, x, SIGMA), guide(cond, uncond, 4.5))


def test_apg_pushes_across_the_denoised_state(three):
    x, cond, uncond = three
    center = denoised(x, cond, SIGMA)
    push = denoised(x, apg()(cond, uncond, 4.5, x, SIGMA), SIGMA) - center
    assert (push * center).flatten(1).sum(1).abs().max() < 1e-10
    assert push.flatten(1).norm(dim=1).min() > 0.1
    limited = denoised(x, apg(parallel=1.0, norm=0.2)(cond, uncond, 4.5, x, SIGMA), SIGMA) - center
    assert torch.allclose(limited.flatten(1).norm(dim=1), torch.full((2,), 3.5 * 0.2, dtype=torch.float64))


def test_variants_compose_with_each_other_and_a_solver(three):
    x, cond, uncond = three
    velocity = guided(
        constant(cond, []),
        constant(uncond, []),
        6.0,
        combine=apg(norm=5.0),
        adjust=[rescale(0.7), threshold(0.995, 3.0)],
        interval=(0.1, 0.9),
    )
    by_hand = apg(norm=5.0)(cond, uncond, 6.0, x, SIGMA)
    by_hand = threshold(0.995, 3.0)(rescale(0.7)(by_hand, cond, x, SIGMA), cond, x, SIGMA)
    assert torch.allclose(velocity(x, SIGMA), by_hand)
    assert torch.isfinite(solve(zero_start(velocity, above=0.99), x, sigmas(8))).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guided(None, None, 2.0, interval=(0.5, 0.5)), "interval"),
        (lambda: guided(None, None, 2.0, interval=(0.0, 1.5)), "interval"),
        (lambda: rescale(1.5), r"\[0, 1\]"),
        (lambda: threshold(0.0, 1.0), "percentile"),
        (lambda: threshold(0.9, 0.0), "bound"),
        (lambda: apg(norm=0.0), "norm"),
    ],
)
def test_bad_options_are_refused(call, message):
    with pytest.raises(FlowError, match=message):
        call()
