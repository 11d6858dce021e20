"""The model's weights in files of less than 16 MB, and together again."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vae import VAE
from weights.source import EMBEDDED

from ..errors import SettingsError
from ..noise import seeded
from .autoencoder import CONFIG
from .fit import save
from .painter import Painter
from .painting import SIZE
from .vocabulary import Tokenizers, write_tokenizers

LARGEST = 15_700_000  # bytes of tensors in a piece
ENCODERS = "text_encoders"
MODEL = "sd3.5_tiny.safetensors"
# What each file of the model holds: the parts and the prefixes of their keys.
FILES = {
    MODEL: {"mmdit": "model.diffusion_model.", "vae": "first_stage_model."},
    f"{ENCODERS}/clip_l.safetensors": {"clip_l": ""},
    f"{ENCODERS}/clip_g.safetensors": {"clip_g": ""},
    f"{ENCODERS}/t5xxl_fp16.safetensors": {"t5": ""},
}


def half(painter: Painter, vae: VAE) -> dict[str, Tensor]:
    """All weights in float16 on the CPU, each under its part's name, a slash, and its own."""
    parts: dict[str, nn.Module] = {
        name: getattr(painter, name) for name in ("mmdit", "clip_l", "clip_g", "t5")
    }
    parts["vae"] = vae
    return {
        f"{part}/{name}": tensor.detach().half().cpu()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def write_pieces(tensors: Mapping[str, Tensor], folder: Path) -> list[Path]:
    """Write tensors to `piece_1.safetensors` and so on, each a file of less than 16 MB."""
    pieces: list[dict[str, Tensor]] = [{}]
    room = LARGEST
    for name, tensor in tensors.items():
        if tensor.nbytes > room:
            pieces.append({})
            room = LARGEST
        pieces[-1][name] = tensor
        room -= tensor.nbytes
    paths = [folder / f"piece_{number}.safetensors" for number in range(1, len(pieces) + 1)]
    for path, piece in zip(paths, pieces, strict=True):
        save(piece, path)
    return paths


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights, named as by `half`, of what `write_pieces` or `write_model` wrote.

    Args:
        folder: of either; `tiny` is the model of this project, where the folder here has no such one.

    Raises:
        SettingsError: the folder holds neither.
    """
    if str(folder) in EMBEDDED and not folder.exists():
        folder = EMBEDDED[str(folder)]
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("piece_*.safetensors")):
        tensors |= load_file(path)
    if tensors:
        return tensors
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise SettingsError(
            f"{folder} holds neither piece_1.safetensors nor {missing[0]}: name the folder that a training "
            "wrote to, or tiny"
        )
    for file, parts in FILES.items():
        stored = load_file(folder / file)
        for part, prefix in parts.items():
            own = {name.removeprefix(prefix): one for name, one in stored.items() if name.startswith(prefix)}
            tensors |= {f"{part}/{name}": one for name, one in own.items()}
    return tensors


def join(folder: Path, output: Path) -> None:
    """Write the model that lies in pieces in `folder` to `output`, in the official layout."""
    write_model(read_weights(folder), output)


def write_model(tensors: Mapping[str, Tensor], output: Path) -> None:
    """Write all weights, named as by `half`, in the official layout, with their tokenizers."""
    write_tokenizers(output)
    for file, parts in FILES.items():
        named = {
            f"{prefix}{name.split('/', 1)[1]}": tensor
            for part, prefix in parts.items()
            for name, tensor in tensors.items()
            if name.startswith(f"{part}/")
        }
        # The pipeline draws at the size that a file names so, as the official ones do.
        save(named, output / file, {"modelspec.resolution": f"{SIZE}x{SIZE}"} if file == MODEL else None)


def built(tensors: Mapping[str, Tensor], tokenizers: Tokenizers) -> tuple[Painter, VAE]:
    """The modules with these weights, float32 on the CPU."""
    painter, vae = Painter(tokenizers.clip_size, tokenizers.t5_size, seeded(0)), VAE(CONFIG)
    for part in ("mmdit", "clip_l", "clip_g", "t5", "vae"):
        module = vae if part == "vae" else getattr(painter, part)
        state = {
            name.split("/", 1)[1]: tensor.to(torch.float32)
            for name, tensor in tensors.items()
            if name.startswith(f"{part}/")
        }
        module.load_state_dict(state)
    return painter, vae
