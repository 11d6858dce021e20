"""The parts in diffusers and transformers, for `sd35 bench --against diffusers`; see `sd35.bench.Peer`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor

from mmdit import MMDiTConfig
from sd35.bench.parts import randomise
from textenc import CLIPConfig, T5Config
from vae import VAEConfig

NAME = f"diffusers {diffusers.__version__}, transformers {transformers.__version__}"
IMPORT = "from diffusers import StableDiffusion3Pipeline"
GUIDANCE_SCALE = 4.5


def module(config: MMDiTConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """Their transformer."""
    with torch.device(device):
        model = SD3Transformer2DModel(
            sample_size=128,
            patch_size=config.patch_size,
            in_channels=config.channels,
            out_channels=config.channels,
            num_layers=config.depth,
            attention_head_dim=config.dim // config.num_heads,
            num_attention_heads=config.num_heads,
            joint_attention_dim=config.context_dim,
            caption_projection_dim=config.dim,
            pooled_projection_dim=config.pooled_dim,
            pos_embed_max_size=config.pos_embed_size,
            dual_attention_layers=config.dual_blocks,
            qk_norm="rms_norm" if config.qk_norm else None,
        )
    return randomise(model.to(device, dtype))


def transformer(config: MMDiTConfig, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """(latents, sigma, context, pooled) to a velocity."""
    model = module(config, device, dtype)
    return lambda latents, sigma, context, pooled: model(
        latents, context, pooled, 1000 * sigma, return_dict=False
    )[0]


def step(config: MMDiTConfig, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """A guided step as `StableDiffusion3Pipeline.__call__` takes it."""
    model, scheduler = module(config, device, dtype), FlowMatchEulerDiscreteScheduler(shift=3.0)

    def run(latents: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        latents = latents.to(dtype)
        scheduler.set_timesteps(1, device=device)
        timestep = scheduler.timesteps[0]
        both = torch.cat([latents] * 2)
        velocity = model(both, context, pooled, timestep.expand(2), return_dict=False)[0]
        cond, uncond = velocity.chunk(2)
        guided = uncond + GUIDANCE_SCALE * (cond - uncond)
        return scheduler.step(guided, timestep, latents, return_dict=False)[0]

    return run


def autoencoder(
    config: VAEConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Decoding and encoding."""
    levels = len(config.channels)
    with torch.device(device):
        model: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.channels,
            layers_per_block=config.num_res_blocks,
            latent_channels=config.latent_channels,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    randomise(model.to(device, dtype))
    return (
        lambda latents: model.decode(latents, return_dict=False)[0],
        lambda image: model.encode(image, return_dict=False)[0].mode(),
    )


def encoder(config: CLIPConfig | T5Config, device: torch.device, dtype: torch.dtype) -> Callable[..., Any]:
    """Ids to hidden states."""
    with torch.device(device):
        model = their_t5(config) if isinstance(config, T5Config) else their_clip(config)
    randomise(model.to(device, dtype))
    if isinstance(config, T5Config):
        return lambda ids: model(ids)[0]
    return lambda ids: model(ids, output_hidden_states=True)


def their_t5(config: T5Config) -> Any:
    """Transformers' T5 of the same sizes."""
    sizes = transformers.T5Config(
        vocab_size=config.vocab_size,
        d_model=config.dim,
        d_kv=config.head_dim,
        d_ff=config.mlp_dim,
        num_layers=config.depth,
        num_heads=config.num_heads,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(sizes)


def their_clip(config: CLIPConfig) -> Any:
    """Transformers' CLIP of the same sizes."""
    sizes = transformers.CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.mlp_dim,
        projection_dim=config.projection_dim or config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        hidden_act=config.activation,
        max_position_embeddings=config.positions,
        eos_token_id=config.vocab_size - 1,
    )
    return transformers.CLIPTextModelWithProjection(sizes)


def loading(
    config: MMDiTConfig, device: torch.device, dtype: torch.dtype, folder: Path
) -> Callable[[], object]:
    """Reading a transformer that was written in their own layout."""
    module(config, device, dtype).save_pretrained(folder)
    return lambda: SD3Transformer2DModel.from_pretrained(folder, torch_dtype=dtype).to(device)
