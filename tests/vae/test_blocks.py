import math

import pytest
import torch
from torch import nn

from vae.blocks import Attention, Downsample, Middle, ResnetBlock, Upsample


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_downsample_pads_right_and_bottom_only():
    down = Downsample(32)
    with torch.no_grad():
        down.conv.bias.zero_()
        down.conv.weight.zero_()
        down.conv.weight[torch.arange(32), torch.arange(32), 0, 0] = 1  # takes the window's upper left
        x = torch.randn(1, 32, 4, 6)
        assert torch.equal(down(x), x[:, :, ::2, ::2])
        down.conv.weight[torch.arange(32), torch.arange(32), 0, 0] = 0
        down.conv.weight[torch.arange(32), torch.arange(32), 2, 2] = 1  # and the lower right: past the edge
        out = down(x)
    assert torch.equal(out[:, :, :-1, :-1], x[:, :, 2::2, 2::2])
    assert out[:, :, -1].count_nonzero() == out[:, :, :, -1].count_nonzero() == 0


def test_upsample_repeats_pixels():
    up = Upsample(32)
    nn.init.dirac_(up.conv.weight)
    nn.init.zeros_(up.conv.bias)
    x = torch.randn(1, 32, 2, 3)
    assert torch.equal(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_shortcut_exists_only_where_the_width_changes():
    same, wider = ResnetBlock(32, 32), ResnetBlock(32, 64)
    assert not any("nin_shortcut" in name for name in same.state_dict())
    assert wider.state_dict()["nin_shortcut.weight"].shape == (64, 32, 1, 1)
    assert wider(torch.randn(1, 32, 4, 4)).shape == (1, 64, 4, 4)


def test_block_is_its_shortcut_when_the_last_convolution_is_zero():
    block = ResnetBlock(32, 32)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    x = torch.randn(1, 32, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_equals_its_formula(layout):
    attention = Attention(64).double()
    x = torch.randn(2, 64, 3, 5, dtype=torch.float64).to(memory_format=layout)
    h = attention.norm(x).flatten(2)  # (B, C, HW)
    q, k, v = (
        part.weight[:, :, 0, 0] @ h + part.bias[:, None] for part in (attention.q, attention.k, attention.v)
    )
    weights = (q.transpose(1, 2) @ k / math.sqrt(64)).softmax(-1)  # (B, queries, keys)
    mixed = v @ weights.transpose(1, 2)
    mixed = attention.proj_out.weight[:, :, 0, 0] @ mixed + attention.proj_out.bias[:, None]
    torch.testing.assert_close(attention(x), x + mixed.unflatten(2, (3, 5)), rtol=1e-12, atol=1e-12)


def test_channels_last_is_kept():
    x = torch.randn(2, 64, 4, 6).to(memory_format=torch.channels_last)
    assert (
        Middle(64).to(memory_format=torch.channels_last)(x).is_contiguous(memory_format=torch.channels_last)
    )
