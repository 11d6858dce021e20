"""The MM-DiT: noisy latents, a noise level and a text in, the velocity of the flow out.

SD3 paper (Esser et al. 2024, arXiv:2403.03206), section 4 and figure 2a. Module paths are the keys of
the official checkpoints without `model.diffusion_model.`. Letters as in `blocks.py`.
"""

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from .blocks import AdaLN, JointBlock, Norm, modulate
from .config import MMDiTConfig
from .embed import Embedder, PatchEmbed, TimestepEmbedder, as_sigma, crop_positions


class FinalLayer(nn.Module):
    """From the last image tokens to what each patch of the velocity holds."""

    def __init__(self, dim: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = Norm()
        self.linear = nn.Linear(dim, out_features)
        self.adaLN_modulation = AdaLN(dim, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (B, N, D) and conditioning (B, D) to (B, N, patch² · channels)."""
        shift, scale = self.adaLN_modulation(c)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class MMDiT(nn.Module):
    """The multimodal diffusion transformer of Stable Diffusion 3 and 3.5.

        sigma ─ t_embedder ─┐
        pooled ─ y_embedder ┴(+)─ c ──────────┬──────────────┬─────────────┐
        context ─ context_embedder ──────▶ joint_block ─▶ ... ─▶ (dropped) │
        latents ─ x_embedder (+) pos_embed ▶    "      ─▶ ... ─▶ final_layer ─ unpatchify ─▶ velocity

    The context and the latents meet in every joint block; only the latents come out.
    """

    pos_embed: Tensor

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch_size
        self.x_embedder = PatchEmbed(config.in_channels, dim, patch)
        self.t_embedder = TimestepEmbedder(dim)
        self.y_embedder = Embedder(config.pooled_dim, dim)
        self.context_embedder = nn.Linear(config.context_dim, dim)
        self.register_buffer("pos_embed", torch.zeros(1, config.pos_embed_size**2, dim))
        self.patches = nn.Identity()  # passes on the image tokens with their positions
        self.conditioning = nn.Identity()  # passes on c
        self.joint_blocks = nn.ModuleList(
            JointBlock(
                dim,
                config.num_heads,
                qk_norm=config.qk_norm,
                dual=i in config.dual_blocks,
                last=i == config.depth - 1,
            )
            for i in range(config.depth)
        )
        self.final_layer = FinalLayer(dim, patch * patch * config.channels)

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor | float,
        context: Tensor,
        pooled: Tensor,
        *,
        residuals: Sequence[Tensor | None] | None = None,
        skip_layers: Collection[int] = (),
    ) -> Tensor:
        """Predict the velocity dx/dσ = noise - data at a point of the flow.

        Args:
            latents: (B, C, h, w); h and w divisible by the patch size. A model for inpainting reads 2 C + 1
                channels: the latents, a mask (1 where to draw), the latents of the picture without that.
            sigma: noise level in [0, 1], (B,), or one number for all; float32 whatever the model's dtype.
            context: the text encoders' tokens, (B, M, context_dim).
            pooled: the pooled text, (B, pooled_dim).
            residuals: what a ControlNet adds to the image tokens, each (B, N, D) or None: one for every
                block, added after it, or fewer, which are spread over the blocks by `spread`.
            skip_layers: blocks to leave out, for skip-layer guidance. A skipped block passes both
                streams on untouched, and its residual is left out with it, as in the reference.

        Returns:
            The velocity, (B, C, h, w), in the dtype of `latents`.

        Raises:
            ValueError: a shape does not fit this model, a noise level is outside of [0, 1] (looked at on a
                CPU alone, see `as_sigma`), or a skipped layer does not exist.
        """
        self._check(latents, context, pooled, skip_layers)
        sigma = as_sigma(sigma, latents)
        depth, dtype = self.config.depth, self.dtype
        added = [None] * depth if residuals is None else spread(residuals, depth)

        x = self.patches(self.embed_latents(latents))  # (B, N, D)
        c = self.conditioning(self.t_embedder(sigma, dtype) + self.y_embedder(pooled.to(dtype)))  # (B, D)
        stream: Tensor | None = self.context_embedder(context.to(dtype))  # (B, M, D)

        for i, (block, residual) in enumerate(zip(self.joint_blocks, added, strict=True)):
            if i in skip_layers:
                continue
            x, stream = block(x, stream, c)
            if residual is not None:
                x = x + residual.to(dtype)

        x = self.final_layer(x, c)  # (B, N, patch² · C)
        return unpatchify(x, *self._grid(latents), self.config.patch_size).to(latents.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it computes in: the table's, since quantised linears may stand for other weights."""
        return self.pos_embed.dtype

    def embed_latents(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to the image tokens that enter the first block, (B, N, D), with positions."""
        return self.x_embedder(latents.to(self.dtype)) + crop_positions(self.pos_embed, *self._grid(latents))

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        """Patches down and across."""
        return latents.shape[-2] // self.config.patch_size, latents.shape[-1] // self.config.patch_size

    def _check(
        self,
        latents: Tensor,
        context: Tensor,
        pooled: Tensor,
        skip_layers: Collection[int],
    ) -> None:
        config = self.config
        batch, sides, patch = latents.shape[0], latents.shape[-2:], config.patch_size
        if latents.ndim != 4 or latents.shape[1] != config.in_channels or any(side % patch for side in sides):
            raise ValueError(
                f"latents must be (B, {config.in_channels}, h, w) with h and w divisible by {patch}, "
                f"got {tuple(latents.shape)}"
            )
        if context.ndim != 3 or context.shape[::2] != (batch, config.context_dim):
            expected = f"({batch}, M, {config.context_dim})"
            raise ValueError(f"context must be {expected}, got {tuple(context.shape)}")
        if pooled.shape != (batch, config.pooled_dim):
            raise ValueError(f"pooled must be ({batch}, {config.pooled_dim}), got {tuple(pooled.shape)}")
        if unknown := [i for i in skip_layers if not 0 <= i < config.depth]:
            raise ValueError(f"skip_layers must be in 0 to {config.depth - 1}, got {unknown}")


def unpatchify(x: Tensor, height: int, width: int, patch: int) -> Tensor:
    """Lay patches side by side: (B, h·w, p·p·C) to (B, C, h·p, w·p).

    Within a token the channel is the fastest index here, and the slowest in `x_embedder.proj`.
    """
    return rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=height, w=width, p=patch, q=patch)


def spread(
    residuals: Sequence[Tensor | None], depth: int, rule: Literal["reference", "diffusers"] = "reference"
) -> list[Tensor | None]:
    """Say which residual is added after which block: block i takes number ⌊i n / depth⌋ of n.

    The references differ in the last block alone, where it counts: a third of the velocity in a small
    model. Every released n divides the depth; for others the original indexes past the end, and
    diffusers computes the same formula in floating point.

    Args:
        residuals: at most one a block, 1 to depth of them.
        depth: blocks of the MM-DiT.
        rule: "reference" adds after every block, as the original code; "diffusers" not after the last.

    Returns:
        One residual or None per block, to be given as `MMDiT.forward(residuals=...)`.

    Raises:
        ValueError: there are none, or more than blocks, or the rule is unknown.
    """
    if not 0 < len(residuals) <= depth:
        raise ValueError(f"residuals must be 1 to {depth}, one a block at most, got {len(residuals)}")
    if rule not in ("reference", "diffusers"):
        raise ValueError(f"rule must be 'reference' or 'diffusers', got {rule!r}")
    added = [residuals[i * len(residuals) // depth] for i in range(depth)]
    return [*added[:-1], None] if rule == "diffusers" else added
