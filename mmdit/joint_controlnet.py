"""ControlNets made of joint blocks: a copy of the first blocks of an MM-DiT, with its text stream.

ControlNet (Zhang et al. 2023, arXiv:2302.05543) in the form that was trained for SD3-medium, not by Stability
AI. diffusers saves such files, as does what trains with it; module paths are the MM-DiT's keys, and two of
ControlNet's own. Letters as in `blocks.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .blocks import JointBlock
from .config import Shapes, count_heads, count_layers, layers_with, shape_of
from .embed import Embedder, PatchEmbed, TimestepEmbedder, crop_positions


@dataclass(frozen=True, kw_only=True)
class JointControlNetConfig:
    """What distinguishes one ControlNet of joint blocks from another."""

    dim: int  # D, that of the base
    depth: int  # joint blocks, and residuals
    num_heads: int
    pos_embed_size: int  # side of the stored position table, in patches
    context_dim: int = 4096
    pooled_dim: int = 2048
    channels: int = 16  # of the latents
    control_channels: int = 16  # of the control latents; 17 where a mask is the last, for inpainting
    patch_size: int = 2
    qk_norm: bool = False
    dual_blocks: tuple[int, ...] = ()
    reads_pooled: bool = False  # False: zeros stand for the pooled text, as in training; config.json tells

    @classmethod
    def from_shapes(
        cls, shapes: Shapes, *, num_heads: int | None = None, reads_pooled: bool = False
    ) -> "JointControlNetConfig":
        """Read every size off the tensors of a checkpoint.

        Args:
            shapes: name to shape, under our names.
            num_heads: of the attention; None takes heads of 64.
            reads_pooled: as the field, which no shape tells.

        Raises:
            ShapeError: a tensor that decides a size is absent or has the wrong number of axes.
        """
        dim, channels, patch_size, _ = shape_of(shapes, "x_embedder.proj.weight", 4)
        return cls(
            dim=dim,
            depth=count_layers(shapes, "joint_blocks"),
            num_heads=count_heads(dim) if num_heads is None else num_heads,
            pos_embed_size=round(shape_of(shapes, "pos_embed", 3)[1] ** 0.5),
            context_dim=shape_of(shapes, "context_embedder.weight", 2)[1],
            pooled_dim=shape_of(shapes, "y_embedder.mlp.0.weight", 2)[1],
            channels=channels,
            control_channels=shape_of(shapes, "pos_embed_input.proj.weight", 4)[1],
            patch_size=patch_size,
            qk_norm="joint_blocks.0.x_block.attn.ln_k.weight" in shapes,
            dual_blocks=layers_with(shapes, r"joint_blocks\.(\d+)\.x_block\.attn2\.qkv\.weight"),
            reads_pooled=reads_pooled,
        )


class JointControlNet(nn.Module):
    """Residuals for the MM-DiT's image tokens, from joint blocks that read text and control picture.

    control_latents ─ pos_embed_input ──────────┐
    latents ─ x_embedder (+) pos_embed ────────(+)─▶ joint_block ──▶ joint_block ──▶ ...
    context ─ context_embedder ────────────────────▶     "      ──▶     "
    sigma ─ t_embedder (+) y_embedder ─ pooled ─ c ─▶     "              "
                                               controlnet_blocks.0       .1      ─▶ residuals
    """

    pos_embed: Tensor

    def __init__(self, config: JointControlNetConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch_size
        self.x_embedder = PatchEmbed(config.channels, dim, patch)
        self.pos_embed_input = PatchEmbed(config.control_channels, dim, patch)
        self.t_embedder = TimestepEmbedder(dim)
        self.y_embedder = Embedder(config.pooled_dim, dim)
        self.context_embedder = nn.Linear(config.context_dim, dim)
        self.register_buffer("pos_embed", torch.zeros(1, config.pos_embed_size**2, dim))
        self.joint_blocks = nn.ModuleList(
            JointBlock(dim, config.num_heads, qk_norm=config.qk_norm, dual=i in config.dual_blocks)
            for i in range(config.depth)
        )
        self.controlnet_blocks = nn.ModuleList(nn.Linear(dim, dim) for _ in range(config.depth))

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        context: Tensor,
        pooled: Tensor,
        control_latents: Tensor,
        *,
        scale: float = 1.0,
    ) -> list[Tensor]:
        """Compute what to add to the image tokens of the base at this point of the flow.

        Args:
            latents: what the base is about to see, (B, C, h, w).
            sigma: noise level in [0, 1], (B,).
            context: the text encoders' tokens, (B, M, context_dim).
            pooled: the pooled text, (B, pooled_dim); not read unless `config.reads_pooled`.
            control_latents: the encoded control picture, (B or 1, control_channels, h, w), scaled, and
                shifted only where the pooled text is read; the last of 17 channels is 1 where to keep.
            scale: strength; 0 leaves the base alone.

        Returns:
            One residual (B, N, D) per block, which `spread` spreads over the base's.

        Raises:
            ValueError: a shape does not fit.
        """
        self._check(latents, context, pooled, control_latents)
        dtype, patch = self.pos_embed.dtype, self.config.patch_size
        grid = latents.shape[-2] // patch, latents.shape[-1] // patch
        if not self.config.reads_pooled:
            pooled = torch.zeros_like(pooled)
        x = self.x_embedder(latents.to(dtype)) + crop_positions(self.pos_embed, *grid)  # (B, N, D)
        x = x + self.pos_embed_input(control_latents.to(dtype))
        c = self.t_embedder(sigma, dtype) + self.y_embedder(pooled.to(dtype))  # (B, D)
        stream = self.context_embedder(context.to(dtype))  # (B, M, D)

        residuals = []
        for block, out in zip(self.joint_blocks, self.controlnet_blocks, strict=True):
            x, stream = block(x, stream, c)
            residuals.append(scale * out(x))
        return residuals

    def _check(self, latents: Tensor, context: Tensor, pooled: Tensor, control_latents: Tensor) -> None:
        config, batch, sides = self.config, len(latents), tuple(latents.shape[2:])
        if latents.shape[1] != config.channels:
            raise ValueError(
                f"this ControlNet reads latents of {config.channels} channels, got {latents.shape[1]}"
            )
        if context.shape[::2] != (batch, config.context_dim) or pooled.shape != (batch, config.pooled_dim):
            raise ValueError(
                f"context and pooled must be ({batch}, M, {config.context_dim}) and ({batch}, "
                f"{config.pooled_dim}), got {tuple(context.shape)} and {tuple(pooled.shape)}"
            )
        one = (config.control_channels, *sides)
        if tuple(control_latents.shape) not in ((1, *one), (batch, *one)):
            raise ValueError(
                f"control_latents must be {(1, *one)} or {(batch, *one)}, as large as the latents, got "
                f"{tuple(control_latents.shape)}: encode the control picture at the size to draw"
            )
