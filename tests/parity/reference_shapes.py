"""Names and shapes of small models in the official layout: what `reference_models` draws tensors for."""

from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class TransformerSizes:
    """A transformer in miniature. `num_heads` is free here; the released models have heads of width 64."""

    dim: int
    depth: int
    num_heads: int
    qk_norm: bool
    dual_blocks: tuple[int, ...] = ()
    pos_embed_size: int = 8
    context_dim: int = 64
    pooled_dim: int = 48


@dataclass(frozen=True)
class VAESizes:
    """An autoencoder in miniature; the odd widths put shortcuts on both sides of one level."""

    channels: tuple[int, ...] = (32, 32, 64, 32)
    num_res_blocks: int = 1


def linear(name: str, out_features: int, in_features: int, *, bias: bool = True) -> Shapes:
    """The two tensors of a linear layer."""
    shapes: Shapes = {f"{name}.weight": (out_features, in_features)}
    return shapes | ({f"{name}.bias": (out_features,)} if bias else {})


def stream_shapes(prefix: str, dim: int, head_dim: int | None, *, dual: bool, last: bool) -> Shapes:
    """One stream of a joint block; `head_dim` None leaves the qk norms out, `last` the outputs."""
    shapes = linear(f"{prefix}.adaLN_modulation.1", dim * (2 if last else 9 if dual else 6), dim)
    for attention in ("attn", "attn2") if dual else ("attn",):
        shapes |= linear(f"{prefix}.{attention}.qkv", 3 * dim, dim)
        if head_dim:
            shapes |= {f"{prefix}.{attention}.{norm}.weight": (head_dim,) for norm in ("ln_q", "ln_k")}
        if not last:
            shapes |= linear(f"{prefix}.{attention}.proj", dim, dim)
    if not last:
        shapes |= linear(f"{prefix}.mlp.fc1", 4 * dim, dim) | linear(f"{prefix}.mlp.fc2", dim, 4 * dim)
    return shapes


def transformer_shapes(sizes: TransformerSizes) -> Shapes:
    """Every tensor of a transformer, named as in sd3.5_medium.safetensors without its prefix."""
    dim, head_dim = sizes.dim, sizes.dim // sizes.num_heads if sizes.qk_norm else None
    shapes: Shapes = {"x_embedder.proj.weight": (dim, 16, 2, 2), "x_embedder.proj.bias": (dim,)}
    for embedder, features in (("t_embedder", 256), ("y_embedder", sizes.pooled_dim)):
        shapes |= linear(f"{embedder}.mlp.0", dim, features) | linear(f"{embedder}.mlp.2", dim, dim)
    shapes |= linear("context_embedder", dim, sizes.context_dim)
    for i in range(sizes.depth):
        block, last = f"joint_blocks.{i}", i == sizes.depth - 1
        shapes |= stream_shapes(f"{block}.context_block", dim, head_dim, dual=False, last=last)
        shapes |= stream_shapes(f"{block}.x_block", dim, head_dim, dual=i in sizes.dual_blocks, last=False)
    shapes |= linear("final_layer.adaLN_modulation.1", 2 * dim, dim)
    return shapes | linear("final_layer.linear", 64, dim)


def controlnet_shapes(sizes: TransformerSizes) -> Shapes:
    """Every tensor of a ControlNet for SD3.5-large, named as in its file."""
    dim, embed = sizes.dim, "time_text_embed"
    shapes: Shapes = {"pos_embed_input.proj.weight": (dim, 16, 2, 2), "pos_embed_input.proj.bias": (dim,)}
    for embedder, features in (("timestep_embedder", 256), ("text_embedder", sizes.pooled_dim)):
        shapes |= linear(f"{embed}.{embedder}.linear_1", dim, features)
        shapes |= linear(f"{embed}.{embedder}.linear_2", dim, dim)
    for i in range(sizes.depth):
        shapes |= stream_shapes(f"transformer_blocks.{i}", dim, None, dual=False, last=False)
        shapes |= linear(f"controlnet_blocks.{i}", dim, dim)
    return shapes


def vae_shapes(sizes: VAESizes) -> Shapes:
    """Every tensor of an autoencoder, named as in sd3.5_medium.safetensors without its prefix."""
    widths, blocks = sizes.channels, sizes.num_res_blocks
    shapes: Shapes = {}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.weight": (channels,), f"{name}.bias": (channels,)})

    def conv(name: str, channels_out: int, channels_in: int, size: int = 3) -> None:
        shapes.update(
            {f"{name}.weight": (channels_out, channels_in, size, size), f"{name}.bias": (channels_out,)}
        )

    def resnet(name: str, channels_out: int, channels_in: int) -> None:
        norm(f"{name}.norm1", channels_in)
        conv(f"{name}.conv1", channels_out, channels_in)
        norm(f"{name}.norm2", channels_out)
        conv(f"{name}.conv2", channels_out, channels_out)
        if channels_in != channels_out:
            conv(f"{name}.nin_shortcut", channels_out, channels_in, 1)

    def ends(side: str, conv_in: tuple[int, int], width_out: int, conv_out: int) -> None:
        conv(f"{side}.conv_in", *conv_in)
        resnet(f"{side}.mid.block_1", widths[-1], widths[-1])
        norm(f"{side}.mid.attn_1.norm", widths[-1])
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{side}.mid.attn_1.{part}", widths[-1], widths[-1], 1)
        resnet(f"{side}.mid.block_2", widths[-1], widths[-1])
        norm(f"{side}.norm_out", width_out)
        conv(f"{side}.conv_out", conv_out, width_out)

    ends("encoder", (widths[0], 3), widths[-1], 32)
    ends("decoder", (widths[-1], 16), widths[0], 3)
    top = len(widths) - 1
    for i, width in enumerate(widths):
        for j in range(blocks):
            resnet(f"encoder.down.{i}.block.{j}", width, width if j else widths[max(i - 1, 0)])
        for j in range(blocks + 1):
            resnet(f"decoder.up.{i}.block.{j}", width, width if j else widths[min(i + 1, top)])
        if i < top:
            conv(f"encoder.down.{i}.downsample.conv", width, width)
        if i > 0:
            conv(f"decoder.up.{i}.upsample.conv", width, width)
    return shapes
