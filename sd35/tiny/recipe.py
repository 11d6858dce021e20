"""The embedded model from nothing: `sd35 train tiny`.

Every stage can be stopped and taken up again; what it has done so far lies in the output folder
under `training/`. At the end the folder holds the model in the official layout, in float16.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from vae import VAE

from ..errors import SettingsError
from .autoencoder import SIZE, train_decoder, train_joint
from .fit import save
from .transformer import Painter, train_painter
from .vocabulary import CLIP_FOLDERS, T5_FOLDER, Tokenizers, write_tokenizers

STATE = "training"  # what is in the output folder of a run, from its first moment on
ENCODERS = "text_encoders"


def train(output: Path, *, seed: int = 0, device: str = "cpu") -> None:
    """Train the embedded model and write it to a folder.

    Args:
        output: made if it does not exist; a run that was stopped goes on from what is there, and one that
            was finished writes the same model again.
        seed: of every random number in it. Another machine's arithmetic still gives other weights.
        device: where to train; bfloat16 where that is fast, float32 for what must be exact.

    Raises:
        FileExistsError: the folder holds a model, or a part of one, that no run in it has made.
        SettingsError: a run with another seed is under way in it, or this torch is too old.
    """
    if not hasattr(torch.optim, "Muon"):
        raise SettingsError(
            f"training needs the optimizer Muon of torch 2.9; this is torch {torch.__version__}"
        )
    _refuse_foreign(output)
    state = output / STATE
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
    encoders = output / ENCODERS
    # The pipeline draws at the size that a file names so, as the official ones do.
    resolution = {"modelspec.resolution": f"{SIZE}x{SIZE}"}
    save(tensors, output / "sd3.5_tiny.safetensors", resolution)
    save(_half(painter.clip_l), encoders / "clip_l.safetensors")
    save(_half(painter.clip_g), encoders / "clip_g.safetensors")
    save(_half(painter.t5), encoders / "t5xxl_fp16.safetensors")


def _refuse_foreign(output: Path) -> None:
    """Refuse a folder with a model in it, unless a run began there."""
    folders = [output / name for name in (ENCODERS, *CLIP_FOLDERS, T5_FOLDER)]
    there = [*output.glob("*.safetensors"), *(folder for folder in folders if folder.exists())]
    if there and not (output / STATE).exists():
        raise FileExistsError(
            f"{there[0]} exists and was not made by a training in {output}: choose another output folder"
        )


def _half(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """A module's tensors in float16, under the names of the official files."""
    return {f"{prefix}{name}": tensor.detach().half().cpu() for name, tensor in module.state_dict().items()}
