"""The MM-DiT: noisy latents, a noise level and a text in, the velocity of the flow out.

SD3 paper (Esser et al. 2024, arXiv:2403.03206), section 4 and figure 2a. Module paths are the keys of
the official checkpoints without `model.diffusion_model.`. Letters as in `blocks.py`.
"""

from collections.abc import Collection, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from .blocks import AdaLN, JointBlock, Norm, modulate
from .config import MMDiTConfig
from .embed import Embedder, PatchEmbed, TimestepEmbedder, crop_positions


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
    """

    pos_embed: Tensor

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch_size
        self.x_embedder = PatchEmbed(config.channels, dim, patch)
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
        sigma: Tensor,
        context: Tensor,
        pooled: Tensor,
        *,
        residuals: Sequence[Tensor | None] | None = None,
        skip_layers: Collection[int] = (),
    ) -> Tensor:
        """Predict the velocity dx/dσ = noise - data at a point of the flow.

        Args:
            latents: (B, C, h, w); h and w divisible by the patch size.
            sigma: noise level in [0, 1], (B,); float32 whatever the model's dtype.
            context: the text encoders' tokens, (B, M, context_dim).
            pooled: the pooled text, (B, pooled_dim).
            residuals: what a ControlNet adds to the image tokens, each (B, N, D) or None. With one
                for every block, `residuals[i]` is added after block i; with fewer, n, block i takes
                `residuals[i * n // depth]`, as the reference spreads 19 over 38 blocks.
            skip_layers: blocks to leave out, for skip-layer guidance. A skipped block passes both
                streams on untouched, and its residual is left out with it, as in the reference.

        Returns:
            The velocity, of the shape and dtype of `latents`.

        Raises:
            ValueError: a shape does not fit this model, or a skipped layer does not exist.
        """
        self._check(latents, sigma, context, pooled, residuals, skip_layers)
        dtype, patch = self.context_embedder.weight.dtype, self.config.patch_size
        height, width = latents.shape[-2] // patch, latents.shape[-1] // patch

        positions = crop_positions(self.pos_embed, height, width)  # (1, N, D)
        x = self.patches(self.x_embedder(latents.to(dtype)) + positions)  # (B, N, D)
        c = self.conditioning(self.t_embedder(sigma) + self.y_embedder(pooled.to(dtype)))  # (B, D)
        stream: Tensor | None = self.context_embedder(context.to(dtype))  # (B, M, D)

        for i, block in enumerate(self.joint_blocks):
            if i in skip_layers:
                continue
            x, stream = block(x, stream, c)
            residual = residuals[i * len(residuals) // self.config.depth] if residuals else None
            if residual is not None:
                x = x + residual.to(dtype)

        x = self.final_layer(x, c)  # (B, N, patch² · C)
        return unpatchify(x, height, width, patch).to(latents.dtype)

    def _check(
        self,
        latents: Tensor,
        sigma: Tensor,
        context: Tensor,
        pooled: Tensor,
        residuals: Sequence[Tensor | None] | None,
        skip_layers: Collection[int],
    ) -> None:
        config = self.config
        batch, sides = latents.shape[0], latents.shape[-2:]
        if latents.ndim != 4 or latents.shape[1] != config.channels or any(n % config.patch_size for n in sides):
            raise ValueError(
                f"latents must be (B, {config.channels}, h, w) with h and w divisible by {config.patch_size}, "
                f"got {tuple(latents.shape)}"
            )
        if sigma.shape != (batch,):
            raise ValueError(f"sigma must be one noise level a sample, ({batch},), got {tuple(sigma.shape)}")
        if context.ndim != 3 or context.shape[::2] != (batch, config.context_dim):
            raise ValueError(f"context must be ({batch}, M, {config.context_dim}), got {tuple(context.shape)}")
        if pooled.shape != (batch, config.pooled_dim):
            raise ValueError(f"pooled must be ({batch}, {config.pooled_dim}), got {tuple(pooled.shape)}")
        if residuals is not None and not 0 < len(residuals) <= config.depth:
            raise ValueError(f"residuals must be 1 to {config.depth}, one a block at most, got {len(residuals)}")
        if unknown := [i for i in skip_layers if not 0 <= i < config.depth]:
            raise ValueError(f"skip_layers must be in 0 to {config.depth - 1}, got {unknown}")


def unpatchify(x: Tensor, height: int, width: int, patch: int) -> Tensor:
    """Lay patches side by side: (B, h·w, p·p·C) to (B, C, h·p, w·p).

    Within a token the channel is the fastest index here, and the slowest in `x_embedder.proj`.
    """
    return rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=height, w=width, p=patch, q=patch)
