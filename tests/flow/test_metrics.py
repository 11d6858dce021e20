"""Closeness: the numbers of the formulas, per sample and in all."""

import math

import pytest
import torch

from flow import FlowError, closeness


def test_numbers_are_those_of_the_formulas():
    true = torch.tensor([[0.0, 4.0], [3.0, 1.0]])
    found = torch.tensor([[1.0, 4.0], [3.0, 1.0]])
    result = closeness(found, true)
    assert result.data_range == 4
    assert result.mse.tolist() == [0.5, 0.0]
    assert result.psnr[0] == pytest.approx(10 * math.log10(16 / 0.5))
    assert result.psnr[1] == math.inf
    assert result.cosine.tolist() == pytest.approx([16 / (math.sqrt(17) * 4), 1.0])
    assert result.total_mse == 0.25
    assert result.total_psnr == pytest.approx(10 * math.log10(16 / 0.25))
    assert result.total_cosine == pytest.approx((16 / (math.sqrt(17) * 4) + 1) / 2)


def test_range_can_be_given_and_half_precision_is_widened():
    true = torch.randn(3, 4, 4).bfloat16()
    assert closeness(true + 1, true, data_range=2.0).data_range == 2.0
    assert closeness(true, true).mse.dtype == torch.float64


def test_bad_input_is_refused():
    with pytest.raises(FlowError, match=r"\(2, 3\) and \(2, 4\)"):
        closeness(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(FlowError, match="positive data_range"):
        closeness(torch.zeros(2, 3), torch.zeros(2, 3))
