"""What is computed some rows at a time is what it is at once, to the same bits or to one rounding."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdit.blocks import QKNorm
from mmdit.in_cache import CACHED, by_tokens, gelu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_qk_norm_of_some_tokens_at_a_time_gives_the_same_bits(batch, dtype):
    """Of a query as `qkv` writes it, of a length that no number of tokens at a time divides."""
    generator = torch.Generator().manual_seed(0)
    length = CACHED * 5 // (batch * 4 * 64) + 1
    heads = torch.randn(batch, length, 3, 4, 64, generator=generator).to(dtype)[:, :, 1].transpose(1, 2)
    norm = QKNorm(64)
    norm.weight.copy_(torch.rand(64, generator=generator))
    norm, lengths = norm.to(dtype), []

    def watched(tokens: Tensor) -> Tensor:
        lengths.append(tokens.shape[2])
        return norm.norm(tokens)

    assert torch.equal(by_tokens(watched, heads), norm.norm(heads))
    assert len(lengths) > 5
    assert sum(lengths) == length
    assert torch.equal(norm(heads), norm.norm(heads))
    lengths.clear()
    by_tokens(watched, heads.clone().requires_grad_())
    assert lengths == [length]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gelu_rounds_once_and_less_than_the_kernel_of_torch(dtype):
    """Every number of 16 bits below 30, beyond which GELU is its input or 0; the last rows are fewer."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    every = every[every.abs() < 30].repeat(7)
    x = every[: len(every) // 1000 * 1000].view(2, -1, 1000)
    assert x.numel() > CACHED
    wide = x.double()
    exact = wide * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
    step = torch.finfo(dtype).eps / 2
    ours, theirs = gelu(x), F.gelu(x, approximate="tanh")
    assert ours.dtype == dtype
    error = (ours.double() - exact).abs()
    least = torch.finfo(dtype).smallest_normal * step  # half of what is between 0 and the next number
    least += 30 * torch.finfo(torch.float32).tiny  # a sigmoid below that is 0
    assert (error <= (1 + 1e-3) * step * exact.abs() + least).all()
    assert error.mean() <= (theirs.double() - exact).abs().mean()
    assert (ours != theirs).double().mean() < 0.01  # where torch's 1 + tanh cancels


def test_gelu_is_that_of_torch_where_nothing_is_gained():
    """In float32, of few numbers, and where gradients are asked for."""
    x = torch.linspace(-9, 9, CACHED + 3)
    assert torch.equal(gelu(x), F.gelu(x, approximate="tanh"))
    few = x[::2].bfloat16()
    assert torch.equal(gelu(few), F.gelu(few, approximate="tanh"))
    many = x.bfloat16().requires_grad_()
    with torch.enable_grad():
        ours, theirs = gelu(many), F.gelu(many, approximate="tanh")
        slopes = [torch.autograd.grad(one.sum(), many)[0] for one in (ours, theirs)]
    assert torch.equal(ours, theirs)
    assert torch.equal(*slopes)


def test_derivatives_and_batches_of_torch_func_pass_through_gelu():
    x = torch.linspace(-9, 9, 4 * CACHED).bfloat16().view(2, -1, 1024)  # each of both large enough

    def theirs(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    step = torch.finfo(torch.bfloat16).eps
    (ours, slope), (expected, exact) = (torch.func.jvp(f, (x,), (x,)) for f in (gelu, theirs))
    assert (ours - expected).abs().max() <= step * 9
    assert (slope - exact).abs().max() <= step * 9
    assert torch.equal(torch.func.vmap(gelu)(x), gelu(x))
    with torch.enable_grad():
        slopes = [torch.func.grad(lambda x, f=f: f(x).float().sum())(x) for f in (gelu, theirs)]
    assert torch.equal(*slopes)
