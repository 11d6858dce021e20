"""What makes the autoencoder fast, or small, and what it costs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weights
from vae.blocks import GroupNorm, ResnetBlock, UpsampledConv, norm_by_channels
from vae.tiling import decode_tiled, encode_tiled


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2**-6)]
)
def test_four_small_convolutions_are_one_of_the_upsampled_map(dtype, limit, layout):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv, x = UpsampledConv(32), torch.randn(2, 32, 5, 7, dtype=torch.float64)
    conv, x = conv.to(dtype), x.to(dtype).contiguous(memory_format=layout).requires_grad_()
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), conv.weight, conv.bias, padding=1)
    folded = conv(x)
    assert folded.is_contiguous(memory_format=layout)
    assert (folded - plain).abs().max() < limit * plain.abs().max()
    seed = torch.linspace(-1, 1, plain.numel(), dtype=torch.float64).to(dtype).view_as(plain)
    leaves = (x, conv.weight)
    for ours, theirs in zip(
        torch.autograd.grad(folded, leaves, seed), torch.autograd.grad(plain, leaves, seed), strict=True
    ):
        assert (ours - theirs).abs().max() < 4 * limit * theirs.abs().max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mean", [0, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_statistics_by_channels_are_those_of_the_groups(dtype, mean, layout):
    """To rounding, which E[x²] - E[x]² multiplies by 1 + mean² / variance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 96, 24, 31, generator=generator, dtype=torch.float64) + mean
    norm = GroupNorm(96).double().requires_grad_(False)
    norm.weight.copy_(torch.rand(96, generator=generator, dtype=torch.float64) - 0.5)
    norm.bias.copy_(torch.rand(96, generator=generator, dtype=torch.float64) - 0.5)
    x, norm = x.to(dtype).contiguous(memory_format=layout), norm.to(dtype)
    y = norm_by_channels(x, 32, norm.weight, norm.bias, norm.eps)
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    exact = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    inside = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * 16 * (1 + mean**2)
    assert ((y.double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + inside).all()


def test_a_flat_map_becomes_the_bias():
    """Where rounding would make the variance negative."""
    x = torch.full((1, 32, 9, 7), 0.1, dtype=torch.bfloat16)
    weight, bias = torch.ones(2, 32, dtype=torch.bfloat16)
    assert (norm_by_channels(x, 32, weight, bias, 1e-6) - 1).abs().max() < 0.02


def layouts(vae: nn.Module) -> list[bool]:
    """Filled as the autoencoder runs: whether each residual block reads channels_last."""
    seen: list[bool] = []
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            module.register_forward_pre_hook(
                lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
            )
    return seen


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, True), (torch.float32, False)])
def test_memory_order_of_every_map(small, dtype, expected):
    """channels_last in 16 bits, and not where gradients are asked for."""
    seen = layouts(small.to(dtype))
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = small.encode(image)
    assert latents.is_contiguous()
    assert small.decode(latents).is_contiguous()
    assert set(seen) == {expected}
    assert len(seen) == len([m for m in small.modules() if isinstance(m, ResnetBlock)])
    seen.clear()
    small.decode(latents.requires_grad_())
    assert not any(seen)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_changes_nothing(small, default):
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def run() -> tuple[torch.Tensor, ...]:
        latents = small.encode(image, sample=True, generator=torch.Generator().manual_seed(1))
        tiled = decode_tiled(small, latents, tile=2, overlap=1)
        return latents, small.decode(latents), tiled

    expected = run()
    torch.set_default_dtype(default)
    try:
        actual = run()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_one_tile_is_the_whole_to_the_last_bit(small):
    latents = torch.randn(2, 16, 3, 5, generator=torch.Generator().manual_seed(0))
    image = small.decode(latents)
    assert torch.equal(decode_tiled(small, latents, tile=5, overlap=2), image)
    assert torch.equal(encode_tiled(small, image, tile=5, overlap=2), small.encode(image))


class Pixelwise(nn.Module):
    """An autoencoder that sees one latent pixel at a time: tiles of it lose nothing."""

    def __init__(self, small) -> None:
        super().__init__()
        self.config = small.config

    def decode(self, latents):
        return F.interpolate(latents[:, :3], scale_factor=8.0)

    def encode(self, image):
        return F.avg_pool2d(image, 8).repeat(1, 6, 1, 1)[:, :16]


@pytest.mark.parametrize(("height", "width"), [(9, 4), (4, 13), (11, 10)])
@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_tiles_cover_the_picture_and_stand_where_they_belong(small, height, width, overlap):
    vae = Pixelwise(small)
    latents = torch.randn(1, 16, height, width, generator=torch.Generator().manual_seed(0))
    whole = vae.decode(latents)
    torch.testing.assert_close(decode_tiled(vae, latents, tile=4, overlap=overlap), whole)
    torch.testing.assert_close(encode_tiled(vae, whole, tile=4, overlap=overlap), vae.encode(whole))


def test_how_near_tiles_come():
    """Of the embedded autoencoder, on a picture whose corners differ: a tile lacks the others' statistics."""
    vae = weights.load_vae("tiny")
    row, column = torch.meshgrid(*[torch.linspace(-1, 1, 96)] * 2, indexing="ij")
    disc, around = torch.stack([column, row, -column]), torch.stack([row, -row * column, column])
    image = torch.where(row**2 + column**2 < 0.4, disc, around)[None]
    with torch.inference_mode():
        latents = vae.encode(image)
        whole = vae.decode(latents)
        psnrs = [
            float(
                10
                * torch.log10(4 / (decode_tiled(vae, latents, tile=tile, overlap=3) - whole).square().mean())
            )
            for tile in (6, 9)
        ]
    assert 20 < psnrs[0] < psnrs[1] < 40  # 20.6 and 23.5 dB: near the whole, a larger tile nearer


@pytest.mark.parametrize("overlap", [-1, 4])
def test_an_overlap_that_leaves_nothing_of_a_tile(small, overlap):
    with pytest.raises(ValueError, match="an overlap must be 0 to 3"):
        decode_tiled(small, torch.zeros(1, 16, 8, 8), tile=4, overlap=overlap)
