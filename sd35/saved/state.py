"""Latents in a file, with all that it takes to undo the generation that they came from."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from flow import Companion

from ..errors import SettingsError
from ..settings import Settings
from .write import check_output, written

FORMAT = "sd35.State 1"
"""Of saved states; the number goes up when a reader of the one before would go wrong."""

_COMPANION = "companion."


@dataclass(frozen=True)
class State:
    """Where a solver ended, or where it began: what a picture file cannot hold exactly."""

    settings: Settings
    latents: Tensor | None = None
    """(B, 16, h, w), where the generation ended."""
    noise: Tensor | None = None
    """(B, 16, h, w), where it began, or an inversion arrived."""
    companion: Companion | None = None
    """The second state of a reversible solver."""

    def __repr__(self) -> str:
        held = {"latents": self.latents, "noise": self.noise}
        shapes = [f"{name} {tuple(one.shape)}" for name, one in held.items() if one is not None]
        companion = [] if self.companion is None else ["companion"]
        return f"State({', '.join([*shapes, *companion])}, {self.settings.prompts[0].text!r})"

    def save(self, path: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write the state as safetensors, whole or not at all.

        Returns:
            The path of the file, in a list as of every `save`.

        Raises:
            SettingsError: the name does not end in .safetensors.
            OSError: the path cannot be written; FileExistsError where it exists.
        """
        path = Path(path)
        check_output([path], suffix=".safetensors", overwrite=overwrite)
        with written(path, overwrite=overwrite) as temporary:
            temporary.write_bytes(self.to_bytes())
        return [path]

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        tensors = {"latents": self.latents, "noise": self.noise}
        metadata = {"format": FORMAT, "settings": self.settings.to_json()}
        if self.companion is not None:
            tensors |= {_COMPANION + name: tensor for name, tensor in self.companion.tensors.items()}
            metadata["companion"] = json.dumps(self.companion.settings, default=dict)
        present = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
        return save(present, metadata)

    def of(self, index: int) -> "State":
        """What there is of image `index` alone; a companion's is that of the same generation done alone."""
        one, companion = self.settings.of(index), self.companion
        if companion is not None:
            shape = [1, *companion.settings["shape"][1:]]
            told = {**companion.settings, "shape": shape, "extra": one.flow}
            tensors = {name: tensor[index : index + 1] for name, tensor in companion.tensors.items()}
            companion = Companion(tensors, told)
        latents, noise = (
            None if tensor is None else tensor[index : index + 1] for tensor in (self.latents, self.noise)
        )
        return State(one, latents, noise, companion)

    @classmethod
    def load(cls, path: str | Path) -> "State":
        """Read what `save` wrote.

        Raises:
            OSError: there is no such file, or it may not be read.
            SettingsError: it is something else, of another version, or damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata: Mapping[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise SettingsError(f"{path} cannot be read as safetensors: {error}") from error
        return cls._of(tensors, metadata, path)

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> "State":
        """Read what `to_bytes` wrote; the path is that of the file which held it, for messages.

        Raises:
            SettingsError: as `load`.
        """
        try:
            tensors, (length,) = load(data), struct.unpack_from("<Q", data)
            metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        except (SafetensorError, ValueError, struct.error) as error:
            raise SettingsError(f"{path}: the latents kept in it cannot be read: {error}") from error
        return cls._of(tensors, metadata, path)

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> "State":
        if metadata.get("format") != FORMAT:
            raise SettingsError(
                f"{path} is no saved state ({FORMAT}), but of format {metadata.get('format')!r}: "
                "sd35 generate --save-latents writes one"
            )
        return cls(
            Settings.from_json(metadata.get("settings", "")),
            latents=_floating(tensors, "latents", path),
            noise=_floating(tensors, "noise", path),
            companion=_companion(tensors, metadata, path),
        )


def _floating(tensors: Mapping[str, Tensor], name: str, path: Path) -> Tensor | None:
    tensor = tensors.get(name)
    if tensor is not None and (tensor.ndim != 4 or tensor.dtype not in (torch.float32, torch.float64)):
        raise SettingsError(f"{path} is damaged: {name} are {tensor.dtype} {tuple(tensor.shape)}")
    return tensor


def _companion(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> Companion | None:
    own = {
        name.removeprefix(_COMPANION): tensor
        for name, tensor in tensors.items()
        if name.startswith(_COMPANION)
    }
    if not own:
        return None
    try:
        return Companion(own, json.loads(metadata["companion"]))
    except (KeyError, ValueError) as error:
        raise SettingsError(f"{path} is damaged: its companion has no settings ({error!r})") from error
