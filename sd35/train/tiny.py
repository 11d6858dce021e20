"""The embedded model from nothing: `sd35 train tiny`.

Every stage can be stopped and taken up again; what it has done so far lies in the output folder
under `training/`. At the end the folder holds the model in the official layout, in float16.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vae import VAE

from .autoencoder import SIZE, train_decoder, train_joint
from .transformer import Painter, train_painter
from .vocabulary import Tokenizers, write_tokenizers


def train(output: Path, *, seed: int = 0, device: str = "cpu") -> None:
    """Train the embedded model and write it to a folder.

    Args:
        output: made if it does not exist; a run that was stopped goes on from what is there.
        seed: of every random number in it. Another machine's arithmetic still gives other weights.
        device: where to train; bfloat16 where that is fast, float32 for what must be exact.
    """
    state = output / "training"
    state.mkdir(parents=True, exist_ok=True)
    write_tokenizers(output)
    where = torch.device(device)
    vae = train_joint(state, seed=seed, device=where)
    painter = train_painter(vae, Tokenizers(output), state, seed=seed, device=where)
    vae = train_decoder(vae, state, seed=seed, device=where)
    write_model(painter, vae, output)


def write_model(painter: Painter, vae: VAE, output: Path) -> None:
    """Write all weights in the official layout, float16."""
    tensors = _half(painter.mmdit, "model.diffusion_model.") | _half(vae, "first_stage_model.")
    encoders = output / "text_encoders"
    encoders.mkdir(exist_ok=True)
    # The pipeline draws at the size that a file names so, as the official ones do.
    resolution = {"modelspec.resolution": f"{SIZE}x{SIZE}"}
    save_file(tensors, output / "sd3.5_tiny.safetensors", resolution)
    save_file(_half(painter.clip_l), encoders / "clip_l.safetensors")
    save_file(_half(painter.clip_g), encoders / "clip_g.safetensors")
    save_file(_half(painter.t5), encoders / "t5xxl_fp16.safetensors")


def _half(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """A module's tensors in float16, under the names of the official files."""
    return {f"{prefix}{name}": tensor.detach().half().cpu() for name, tensor in module.state_dict().items()}
