"""Text encoders exported, quantised, and under another default dtype."""

import pytest
import torch
from torch import Tensor, nn

IDS = torch.tensor([[3, 4, 5, 1, 0, 0], [6, 3, 7, 8, 1, 0]])


@pytest.fixture(params=["clip_l", "clip_g", "t5"])
def encoder(request) -> nn.Module:
    return request.getfixturevalue(request.param)


def run(encoder: nn.Module, ids: Tensor = IDS) -> tuple[Tensor, ...]:
    out = encoder(ids)
    return (out,) if isinstance(out, Tensor) else tuple(out)


def test_export_gives_the_same_bits(encoder):
    exported = torch.export.export(encoder, (IDS,)).module()
    assert all(torch.equal(a, b) for a, b in zip(run(exported, IDS + 1), run(encoder, IDS + 1), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_quantised_layers(encoder, dtype, in_eight_bits):
    encoder.to(dtype)
    expected = run(encoder)
    for actual, before in zip(run(in_eight_bits(encoder)), expected, strict=True):
        assert actual.dtype == dtype
        assert 0 < (actual - before).abs().max() < 0.1 * before.abs().max()


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_changes_nothing(encoder, default):
    expected = run(encoder)
    torch.set_default_dtype(default)
    try:
        actual = run(encoder)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_a_layer_in_the_place_of_wo_is_called_in_float16(t5):
    """An adapter's, for one: float16 has a path of its own around the overflow."""
    before = run(t5.half())[0]
    mlp = t5.encoder.block[0].layer[1].DenseReluDense
    mlp.wo = nn.Sequential(mlp.wo, nn.Tanh())
    assert not torch.equal(run(t5)[0], before)


def test_position_bias_is_contiguous(t5):
    """As it is gathered, the heads last, it doubles the time of every attention."""
    assert t5.encoder.block[0].layer[0].SelfAttention.position_bias(7).is_contiguous()
