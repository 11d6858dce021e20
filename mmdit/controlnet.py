"""ControlNets: a second, smaller transformer that reads a control picture and steers the MM-DiT.

ControlNet (Zhang et al. 2023, arXiv:2302.05543) in the form released with SD3.5-large for blurred
pictures, canny edges and depth. Module paths are the keys of those files, which are diffusers' names
outside the blocks and the MM-DiT's inside them. Letters as in `blocks.py`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import AdaLN, Mlp, Norm, SelfAttention, add_gated, modulate
from .config import Shapes, count_heads, count_layers, shape_of
from .embed import TIMESTEP_CHANNELS, PatchEmbed, as_sigma, compute_dtype, timestep_embedding
from .model import MMDiT


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig:
    """What distinguishes one ControlNet from another.

    There are two kinds. Those for SD3.5-large ("8B") see the latents as the base does, through its
    patches and positions, and their blocks follow one another. The kind made for SD3.5-medium ("2B",
    which the reference code knows though no file was released) is `parallel`: patches of its own and no
    positions, every block reads the same tokens, and the pooled text is the base's embedding of it.
    """

    dim: int  # D, that of the base
    depth: int  # control blocks, and residuals
    num_heads: int
    pooled_dim: int = 2048
    channels: int = 16  # of the control latents
    patch_size: int = 2
    parallel: bool = False
    typed: bool = True  # the file says what it controls with, as the official ones do

    @classmethod
    def from_shapes(cls, shapes: Shapes, *, num_heads: int | None = None) -> "ControlNetConfig":
        """Read every size off the tensors of a checkpoint.

        The kind is told by the pooled text: embedded by the base already, it has the width of the base.

        Args:
            shapes: name to shape, as in the official ControlNet files.
            num_heads: of the attention, which no shape tells; None takes heads of 64, as all released
                models have.

        Raises:
            ShapeError: a tensor that decides a size is absent or has the wrong number of axes, or the width
                is no multiple of 64 and `num_heads` is None.
        """
        dim, channels, patch_size, _ = shape_of(shapes, "pos_embed_input.proj.weight", 4)
        pooled_dim = shape_of(shapes, "time_text_embed.text_embedder.linear_1.weight", 2)[1]
        return cls(
            dim=dim,
            depth=count_layers(shapes, "transformer_blocks"),
            num_heads=count_heads(dim) if num_heads is None else num_heads,
            pooled_dim=pooled_dim,
            channels=channels,
            patch_size=patch_size,
            # The second sign is for a small base whose pooled text happens to be as wide as itself.
            parallel=pooled_dim == dim and "pos_embed.proj.weight" in shapes,
            typed="control_type" in shapes,
        )


class TwoLayers(nn.Module):
    """The MM-DiT's `Embedder` under the names that ControlNet files give its layers."""

    def __init__(self, in_features: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_features) to (B, D)."""
        return self.linear_2(F.silu(self.linear_1(features)))


class TimeTextEmbed(nn.Module):
    """The conditioning vector: noise level and pooled text."""

    def __init__(self, dim: int, pooled_dim: int) -> None:
        super().__init__()
        self.timestep_embedder = TwoLayers(TIMESTEP_CHANNELS, dim)
        self.text_embedder = TwoLayers(pooled_dim, dim)

    def forward(self, sigma: Tensor, pooled: Tensor) -> Tensor:
        """Sigma (B,) in [0, 1] and the pooled text (B, pooled_dim) to c, (B, D)."""
        timestep = timestep_embedding(sigma).to(pooled.dtype)
        return self.timestep_embedder(timestep) + self.text_embedder(pooled)


class ControlBlock(nn.Module):
    """The image stream of a joint block by itself: text reaches it through the conditioning alone."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = Norm()
        self.attn = SelfAttention(dim, num_heads, qk_norm=False)
        self.norm2 = Norm()
        self.mlp = Mlp(dim)
        self.adaLN_modulation = AdaLN(dim, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (B, N, D) and conditioning (B, D) to new tokens."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c)
        x = add_gated(x, gate, self.attn(modulate(self.norm1(x), shift, scale)))
        return add_gated(x, gate_mlp, self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp)))


class ControlNet(nn.Module):
    """Residuals for the MM-DiT's image tokens, from a picture that shows where things should be.

        control_latents ─ pos_embed_input ─────────────┐
        latents ─ base's x_embedder (+) its pos_embed ─┴(+)─▶ block ──▶ block ──▶ ...
        sigma, pooled ─ time_text_embed ─ c ──────────────────▶ "        "
                                                       controlnet_blocks.0  .1     ─▶ residuals

    A `parallel` one has its own `pos_embed` in the base's place and gives every block the same tokens.
    """

    control_type: Tensor | None

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        self.config = config
        dim, patches = config.dim, (config.channels, config.dim, config.patch_size)
        self.pos_embed_input = PatchEmbed(*patches)
        if config.parallel:
            self.pos_embed = PatchEmbed(*patches)  # the files' name; these are patches, without positions
        self.time_text_embed = TimeTextEmbed(dim, config.pooled_dim)
        self.transformer_blocks = nn.ModuleList(
            ControlBlock(dim, config.num_heads) for _ in range(config.depth)
        )
        self.controlnet_blocks = nn.ModuleList(nn.Linear(dim, dim) for _ in range(config.depth))
        # What it controls with: 0 blur, 1 canny, 2 depth. Nothing here depends on it.
        self.register_buffer("control_type", torch.zeros(1, dtype=torch.int32) if config.typed else None)

    def forward(
        self,
        base: MMDiT,
        latents: Tensor,
        sigma: Tensor | float,
        pooled: Tensor,
        control_latents: Tensor,
        *,
        scale: float = 1.0,
    ) -> list[Tensor]:
        """Compute what to add to the image tokens of `base` at this point of the flow.

        Args:
            base: the MM-DiT that will take the residuals; its embeddings are used here.
            latents: what `base` is about to see, (B, C, h, w).
            sigma: noise level in [0, 1], (B,), or one number for all.
            pooled: the pooled text, (B, pooled_dim of the base).
            control_latents: the encoded control picture, shifted and scaled as latents are, with the
                sides of `latents`; (B, C, h, w), or (1, C, h, w) for the whole batch.
            scale: strength; 0 leaves the base alone.

        Returns:
            One residual (B, N, D) per control block, for `MMDiT.forward(residuals=...)`, which spreads
            them over its blocks as the reference code does; `spread` has the other rule.

        Raises:
            ValueError: the base is of another width, or a shape does not fit.
        """
        self._check(base, latents, pooled, control_latents)
        dtype, sigma = compute_dtype(self), as_sigma(sigma, latents)
        if self.config.parallel:
            x, pooled = self.pos_embed(latents.to(dtype)), base.y_embedder(pooled.to(base.dtype))
        else:
            x = base.embed_latents(latents).to(dtype)
        x = x + self.pos_embed_input(control_latents.to(dtype))  # (B, N, D)
        c = self.time_text_embed(sigma, pooled.to(dtype))  # (B, D)

        residuals = []
        for block, out in zip(self.transformer_blocks, self.controlnet_blocks, strict=True):
            y = block(x, c)
            residuals.append(scale * out(y))
            if not self.config.parallel:
                x = y
        return residuals

    def _check(self, base: MMDiT, latents: Tensor, pooled: Tensor, control_latents: Tensor) -> None:
        config = self.config
        if base.config.dim != config.dim:
            raise ValueError(
                f"this ControlNet was trained for a base of width {config.dim}, and the base given has width "
                f"{base.config.dim}: the official ones are for SD3.5-large"
            )
        expected = base.config.pooled_dim
        if not config.parallel and config.pooled_dim != expected:
            raise ValueError(
                f"this ControlNet reads a pooled text of {config.pooled_dim}, its base one of {expected}"
            )
        if pooled.shape != (len(latents), expected):
            raise ValueError(f"pooled must be ({len(latents)}, {expected}), got {tuple(pooled.shape)}")
        batch, one = len(latents), (config.channels, *latents.shape[2:])
        if tuple(control_latents.shape) not in ((1, *one), (batch, *one)):
            raise ValueError(
                f"control_latents must be {(1, *one)} or {(batch, *one)}, as large as the latents, got "
                f"{tuple(control_latents.shape)}: encode the control picture at the size to draw"
            )
