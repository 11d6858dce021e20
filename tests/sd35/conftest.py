"""A whole model with random weights in the official layout: everything but the knowledge."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmdit import MMDiT, MMDiTConfig
from sd35 import Pipeline, load
from sd35.tiny.vocabulary import Tokenizers, write_tokenizers
from textenc import CLIP, T5, CLIPConfig, T5Config
from vae import VAE, VAEConfig

MMDIT = MMDiTConfig(
    dim=64, depth=2, num_heads=1, pos_embed_size=8, context_dim=32, pooled_dim=24, dual_blocks=(0,)
)
VAE_CONFIG = VAEConfig(channels=(32, 32, 32, 32), num_res_blocks=1, latent_channels=16)
CLIP_SIZES = {"mlp_dim": 32, "positions": 77, "depth": 2, "num_heads": 1}


def in_half(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor.half() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """The folder of a model that draws 32 x 32 by default and 128 x 128 at most."""
    folder = tmp_path_factory.mktemp("model")
    write_tokenizers(folder)
    sizes = Tokenizers(folder)
    (folder / "text_encoders").mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip_l = CLIP(
            CLIPConfig(
                dim=8,
                projection_dim=None,
                activation="quick_gelu",
                vocab_size=sizes.clip_size,
                **CLIP_SIZES,
            )
        )
        clip_g = CLIP(
            CLIPConfig(dim=16, projection_dim=16, activation="gelu", vocab_size=sizes.clip_size, **CLIP_SIZES)
        )
        t5 = T5(
            T5Config(
                vocab_size=sizes.t5_size, dim=32, depth=1, num_heads=1, head_dim=16, mlp_dim=32, buckets=32
            )
        )
        mmdit, vae = MMDiT(MMDIT), VAE(VAE_CONFIG)
    parts = in_half(mmdit, "model.diffusion_model.") | in_half(vae, "first_stage_model.")
    save_file(parts, folder / "sd3.5_random.safetensors", {"modelspec.resolution": "32x32"})
    for name, encoder in {"clip_l": clip_l, "clip_g": clip_g, "t5xxl_fp16": t5}.items():
        save_file(in_half(encoder), folder / "text_encoders" / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="session")
def pipe(model_folder) -> Pipeline:
    """Loaded once; a test that changes it takes a copy (`copy.deepcopy`)."""
    return load(model_folder)
