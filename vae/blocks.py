"""The layers that the encoder and the decoder are made of.

They come from VQGAN by way of latent diffusion (Rombach et al. 2021, arXiv:2112.10752, appendix
G.2). Maps are (B, C, H, W) throughout, in the memory order that `fast_order` chooses. Attribute names are
the checkpoint's; comments say what the odd ones mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
"""Groups of every normalisation, at any width, so every width is a multiple of 32."""


class GroupNorm(nn.GroupNorm):
    """The autoencoder's normalisation: 32 groups, eps 1e-6 (not torch's 1e-5), affine."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        learns = input.requires_grad or self.weight.requires_grad
        if input.device.type == "cuda" and input.itemsize <= 2 and not learns:
            return norm_by_channels(input, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(input)


def norm_by_channels(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group norm whose statistics are those of its channels, put together: x · scale + shift.

    torch's kernel gives a group to one thread block, so that 32 of an H100's 132 multiprocessors work on a
    picture; sums over the rows of a matrix, as here, take all of them. The variance is E[x²] - E[x]² in
    float32. Its error is one of rounding E[x²], which is less than what rounding a map to 16 bits costs.

    Args:
        x: (B, C, H, W).
        groups: that C divides into.
        weight: (C,), without gradients.
        bias: (C,), likewise.
        eps: added to the variance.
    """
    wide = _wide(x)
    mean = x.mean(dim=(2, 3), dtype=wide)  # (B, C)
    square = torch.linalg.vector_norm(x, dim=(2, 3), dtype=wide).square() / x[0, 0].numel()
    mean, square = (one.unflatten(1, (groups, -1)).mean(2, keepdim=True) for one in (mean, square))
    scale = weight.to(wide).view(groups, -1) * torch.rsqrt((square - mean.square()).clamp(min=0) + eps)
    shift = bias.to(wide).view(groups, -1) - mean * scale  # (B, groups, C / groups)
    scale, shift = (one.flatten(1)[:, :, None, None] for one in (scale, shift))
    return torch.addcmul(shift, x, scale, out=torch.empty_like(x))


def fast_order(x: Tensor) -> Tensor:
    """A map in the memory order in which convolutions are fastest, which all later maps then keep.

    That is `channels_last` in 16 bits on a CPU: up to 2.2 times faster with AMX. In float32 it gives nothing
    there, and on an H100 it makes a decode 1.6 times slower, because of group norm. Nor does it pay where
    gradients are asked for: torch's bfloat16 group norm has a slow backward in it.
    """
    if x.itemsize > 2 or x.device.type != "cpu" or x.requires_grad:
        return x
    return x.contiguous(memory_format=torch.channels_last)


class ResnetBlock(nn.Module):
    """Two rounds of norm, SiLU and 3x3 convolution, beside a shortcut."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = GroupNorm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        # "network in network", the old name of a 1x1 convolution. In the file only where the width changes.
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """Every position attends to every other, in one head as wide as the map is deep."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.q = nn.Conv2d(channels, channels, 1)  # 1x1 convolutions: linear maps, stored as (C, C, 1, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        h = self.norm(x)
        q, k, v = (_to_tokens(part(h)) for part in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)  # (B, 1, HW, C), scaled by C^-1/2
        return x + self.proj_out(_to_map(h, x))


def _to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 1, HW, C): a view when `x` is channels_last."""
    return x.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()


def _to_map(x: Tensor, like: Tensor) -> Tensor:
    """(B, 1, HW, C) to (B, C, H, W), as a channels_last view."""
    return x.squeeze(1).transpose(1, 2).unflatten(2, like.shape[2:])


class Downsample(nn.Module):
    """Half the size: a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        # Zeros on the right and at the bottom only: what `padding=1` would do is half a pixel elsewhere.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class UpsampledConv(nn.Conv2d):
    """A 3x3 convolution of a map twice as large, in which every pixel of the input stands four times.

    Of the nine pixels under the kernel, only four differ. So each pixel of a 2x2 square is a 2x2
    convolution of the small map, with sums of the stored weights: the same result, up to rounding, in 4/9
    of the arithmetic.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        batch, channels, height, width = input.shape
        if input.is_contiguous(memory_format=torch.channels_last):  # the result keeps the memory order
            out = input.new_empty(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
        else:
            out = input.new_empty(batch, channels, 2 * height, 2 * width)
        padded = F.pad(input, (1, 1, 1, 1))
        for row, weights in enumerate(_pairs(self.weight.to(_wide(self.weight)), dim=2)):
            for column, weight in enumerate(_pairs(weights, dim=3)):  # (C, C, 2, 2)
                view = padded[:, :, row : row + height + 1, column : column + width + 1]
                out[:, :, row::2, column::2] = F.conv2d(view, weight.to(self.weight.dtype), self.bias)
        return out


def _pairs(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three weights along `dim` as two: for the first and for the second of two equal pixels."""
    before, here, after = weight.split(1, dim=dim)
    return torch.cat([before, here + after], dim=dim), torch.cat([before + here, after], dim=dim)


def _wide(tensor: Tensor) -> torch.dtype:
    """float32 at least, so that sums of weights are rounded once."""
    return torch.promote_types(tensor.dtype, torch.float32)


class Upsample(nn.Module):
    """Twice the size: every pixel four times, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsampledConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        return self.conv(x)


class Middle(nn.Module):
    """The lowest resolution of either half, the only place with attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return self.block_2(self.attn_1(self.block_1(x)))


class DownLevel(nn.Module):
    """One resolution of the encoder: residual blocks, then half the size (but not in the last)."""

    def __init__(self, channels_in: int, channels_out: int, num_res_blocks: int, *, last: bool) -> None:
        super().__init__()
        self.block = _res_blocks(channels_in, channels_out, num_res_blocks)
        self.downsample = None if last else Downsample(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H/2, W/2), or H, W in the last."""
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class UpLevel(nn.Module):
    """One resolution of the decoder: residual blocks, then twice the size (but not in the last)."""

    def __init__(self, channels_in: int, channels_out: int, num_res_blocks: int, *, last: bool) -> None:
        super().__init__()
        self.block = _res_blocks(channels_in, channels_out, num_res_blocks)
        self.upsample = None if last else Upsample(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, 2H, 2W), or H, W in the last."""
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


def _res_blocks(channels_in: int, channels_out: int, number: int) -> nn.ModuleList:
    """`number` residual blocks, of which the first changes the width."""
    return nn.ModuleList(ResnetBlock(channels_out if i else channels_in, channels_out) for i in range(number))
