"""Small random models of diffusers and transformers, from tensors under the official checkpoints' keys.

`make_reference.py` runs them. The tensors are drawn under the official names and shapes; diffusers' own
single-file converters carry them into its modules, so that none of this project's key tables decides what
the references compute. Every tensor is rounded to float8_e4m3fn (position tables to float16) before it is
used, which makes the stored copy exact at a quarter of the size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

Tensors = dict[str, Tensor]
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


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Tensors:
    """Random tensors that keep activations near one: norms near 1, small biases, the rest 1/√fan-in."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in sorted(shapes):
        shape = shapes[name]
        noise = torch.randn(shape, generator=generator)
        if "embedding" in name or "shared" in name or "relative_attention_bias" in name:
            tensor = noise
        elif len(shape) == 1:
            tensor = 0.1 * noise + (1 if name.endswith("weight") else 0)
        elif ".SelfAttention.q." in name:  # T5 does not scale its logits: its weights do
            tensor = noise / shape[1] ** 0.5 / 4
        else:
            tensor = noise / noise[0].numel() ** 0.5
        tensors[name] = tensor.to(torch.float8_e4m3fn).float()
    return tensors


def transformer(sizes: TransformerSizes, seed: int) -> tuple[Tensors, SD3Transformer2DModel]:
    """Random tensors under official keys, and diffusers' transformer holding them."""
    tensors = draw(transformer_shapes(sizes), seed)
    table = get_2d_sincos_pos_embed(sizes.dim, sizes.pos_embed_size, base_size=4, output_type="pt")
    tensors["pos_embed"] = table[None].half().float()
    model = SD3Transformer2DModel(
        sample_size=8,
        num_layers=sizes.depth,
        attention_head_dim=sizes.dim // sizes.num_heads,
        num_attention_heads=sizes.num_heads,
        joint_attention_dim=sizes.context_dim,
        caption_projection_dim=sizes.dim,
        pooled_projection_dim=sizes.pooled_dim,
        pos_embed_max_size=sizes.pos_embed_size,
        dual_attention_layers=sizes.dual_blocks,
        qk_norm="rms_norm" if sizes.qk_norm else None,
    )
    model.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors)))
    return tensors, model.eval()


def controlnet(sizes: TransformerSizes, seed: int) -> tuple[Tensors, SD3ControlNetModel]:
    """The same for a ControlNet of SD3.5-large's kind: no position table and no context of its own."""
    tensors = draw(controlnet_shapes(sizes), seed)
    model = SD3ControlNetModel(
        num_layers=sizes.depth,
        attention_head_dim=sizes.dim // sizes.num_heads,
        num_attention_heads=sizes.num_heads,
        joint_attention_dim=None,
        pooled_projection_dim=sizes.pooled_dim,
        use_pos_embed=False,
        pos_embed_type=None,
        force_zeros_for_pooled_projection=False,
    )
    names = {"adaLN_modulation.1": "norm1.linear", "attn.proj": "attn.to_out.0"}
    names |= {"mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}
    state = {}
    for name, tensor in tensors.items():
        stem, leaf = name.rsplit(".", 1)
        if stem.endswith("attn.qkv"):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            state |= {f"{stem.removesuffix('qkv')}to_{part}.{leaf}": chunk for part, chunk in parts}
            continue
        ending = next((ours for ours in names if stem.endswith(ours)), None)
        state[f"{stem.removesuffix(ending)}{names[ending]}.{leaf}" if ending else name] = tensor
    model.load_state_dict(state)
    return tensors, model.eval()


def autoencoder(sizes: VAESizes, seed: int) -> tuple[Tensors, AutoencoderKL]:
    """The same for the autoencoder, with SD3's shift and scale."""
    tensors = draw(vae_shapes(sizes), seed)
    levels = len(sizes.channels)
    model = AutoencoderKL(
        block_out_channels=sizes.channels,
        layers_per_block=sizes.num_res_blocks,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    model.load_state_dict(convert_ldm_vae_checkpoint(dict(tensors), model.config))
    return tensors, model.eval()


def clip(
    sizes: dict, vocab_size: int, seed: int, *, projection: bool
) -> tuple[Tensors, CLIPTextModelWithProjection]:
    """A CLIP text encoder of three layers; without `projection` as CLIP-L, whose file has none."""
    width = sizes["hidden_size"]
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            **sizes,
            vocab_size=vocab_size,
            intermediate_size=4 * width,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=width,
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
        )
    )
    tensors = draw({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, seed)
    if not projection:
        tensors["text_projection.weight"] = torch.eye(width)
    model.load_state_dict(tensors)
    if not projection:
        del tensors["text_projection.weight"]
    return tensors, model.eval()


def t5(vocab_size: int, seed: int) -> tuple[Tensors, T5EncoderModel]:
    """A T5 encoder of two layers, four heads of width 8: narrower together than the model, as in no other."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=64,
        d_kv=8,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    model = T5EncoderModel(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
    tensors = draw(shapes, seed)
    result = model.load_state_dict(tensors, strict=False)
    if set(result.missing_keys) - {"encoder.embed_tokens.weight"} or result.unexpected_keys:
        raise RuntimeError(f"unexpected T5 tensors: {result}")
    return tensors, model.eval()
