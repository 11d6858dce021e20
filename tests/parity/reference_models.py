"""Small random models of diffusers and transformers, from tensors under the official checkpoints' keys.

`make_reference.py` runs them. The tensors are drawn under the official names and shapes; diffusers' own
single-file converters carry them into its modules, so that none of this project's key tables decides what
the references compute. Every tensor is rounded to float8_e4m3fn (position tables to float16) before it is
used, which makes the stored copy exact at a quarter of the size.
"""

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from reference_shapes import (
    TransformerSizes,
    VAESizes,
    controlnet_shapes,
    transformer_shapes,
    vae_shapes,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

Tensors = dict[str, Tensor]


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
