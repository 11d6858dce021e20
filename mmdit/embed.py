"""What enters the MM-DiT: patches with positions, the noise level, the pooled text.

SD3 paper (Esser et al. 2024, arXiv:2403.03206), section 4 and figure 2a; the sinusoids are those of
DiT (Peebles & Xie 2022, arXiv:2212.09748). Letters as in `blocks.py`.
"""

from itertools import chain
from math import log

import torch
from einops import rearrange
from torch import Tensor, nn

TIMESTEP_CHANNELS = 256
"""Sinusoids of the noise level that enter `t_embedder`, in every released model."""


class PatchEmbed(nn.Module):
    """Cut the latents into patches and project each to one token."""

    def __init__(self, channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) to tokens (B, N, D), row by row."""
        # Contiguous: a transposed view would keep its strides through every block, and be copied in each.
        return rearrange(self.proj(latents), "b d h w -> b (h w) d").contiguous()


class Embedder(nn.Module):
    """Two linear layers with a SiLU between: what `t_embedder` and `y_embedder` have in common."""

    def __init__(self, in_features: int, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(in_features, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, features: Tensor, /) -> Tensor:
        """(B, in_features) to (B, D)."""
        return self.mlp(features)


class TimestepEmbedder(Embedder):
    """The noise level as a vector."""

    def __init__(self, dim: int) -> None:
        super().__init__(TIMESTEP_CHANNELS, dim)

    def forward(self, sigma: Tensor, /, dtype: torch.dtype | None = None) -> Tensor:
        """Sigma (B,) in [0, 1] to (B, D), computed in `dtype`; None is that of the weights."""
        return super().forward(timestep_embedding(sigma).to(dtype or compute_dtype(self)))


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The dtype that a module computes in: that of its first float of 16 bits or more, else float32.

    The `weight` of one layer would not tell it: where a quantised layer stands, there may be none, or one of
    8 bits.
    """
    tensors = chain(module.parameters(), module.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point() and t.itemsize > 1), torch.float32)


def as_sigma(sigma: Tensor | float, like: Tensor) -> Tensor:
    """One noise level for each sample of `like`, (B,), from that or from one for all.

    Raises:
        ValueError: it has another shape, or lies outside of [0, 1]. On a GPU the range is not looked at,
            because the program would have to wait for the GPU in every step.
    """
    batch = len(like)
    if not isinstance(sigma, Tensor):
        sigma = torch.tensor(float(sigma), dtype=torch.float64)
    if sigma.ndim > 1 or sigma.shape not in ((), (batch,)):
        raise ValueError(
            f"sigma must be one noise level a sample, ({batch},), or one for all, got {tuple(sigma.shape)}"
        )
    if sigma.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (float(end) for end in sigma.detach().aminmax())
        if not 0 <= low <= high <= 1:
            outside = low if not low >= 0 else high
            raise ValueError(
                f"sigma must be a noise level in [0, 1], where 1 is noise, got {outside:g}: it is not the "
                "timestep, which is 1000 times sigma"
            )
    return sigma.to(like.device).expand(batch)


def timestep_embedding(sigma: Tensor, channels: int = TIMESTEP_CHANNELS) -> Tensor:
    """Sinusoids of the timestep, [cos(ωᵢ t), sin(ωᵢ t)] with t = 1000 σ and ωᵢ = 10000^(-2i / channels).

    The timestep is never rounded to an integer, nor to half precision: either costs 2 % of the
    velocity. Angles are float32 in every run, as in both reference implementations.

    Args:
        sigma: noise levels in [0, 1], (B,).
        channels: length of the embedding, even.

    Returns:
        (B, channels), float32.
    """
    half = channels // 2
    timestep = (1000 * sigma.to(torch.promote_types(sigma.dtype, torch.float32))).float()
    omega = torch.exp(-log(10000) * torch.arange(half, dtype=torch.float32, device=sigma.device) / half)
    angles = timestep[:, None] * omega  # (B, channels / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_table(dim: int, size: int, *, base_size: int | None = None) -> Tensor:
    """The sin-cos table of positions that the released files store as `pos_embed`.

    The column fills the first half of the channels and the row the second, each as
    [sin(ωᵢ p), cos(ωᵢ p)] with ωᵢ = 10000^(-4i / D) and p = index · base_size / size. The loader
    takes the stored table, never this one: this is for training, and for checking a file.

    Args:
        dim: channels D, divisible by 4.
        size: side of the table, in patches.
        base_size: side over which coordinates run with step 1; 64 in the released models, so that
            a table of 192 has steps of 1/3. None means `size`.

    Returns:
        (1, size * size, D), float64; row by row.
    """
    scale = (base_size or size) / size
    coordinate = torch.arange(size, dtype=torch.float64) * scale
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = coordinate[:, None] * omega  # (size, D / 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (size, D / 2)
    column = axis[None, :, :].expand(size, -1, -1)
    row = axis[:, None, :].expand(-1, size, -1)
    return rearrange(torch.cat([column, row], dim=-1), "h w d -> 1 (h w) d")


def crop_positions(table: Tensor, height: int, width: int) -> Tensor:
    """The centre of a stored position table (1, S², D), for height x width patches: (1, N, D).

    Where a side does not fit evenly, the crop starts at the smaller index, as in the reference.

    Raises:
        ValueError: the table is smaller than what is asked of it.
    """
    size = round(table.shape[1] ** 0.5)
    if height > size or width > size:
        raise ValueError(
            f"the position table has {size} x {size} patches, and {height} x {width} were asked for: "
            f"this model draws at most {size} patches on a side"
        )
    top, left = (size - height) // 2, (size - width) // 2
    square = rearrange(table, "1 (h w) d -> h w d", h=size)
    return rearrange(square[top : top + height, left : left + width], "h w d -> 1 (h w) d")
