"""Guidance: velocities in, a velocity out."""

import pytest
import torch

from flow import FlowError, denoised, guide


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
