"""Tensors that are computed once and kept on disk, each with a hash of what made it."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import SettingsError
from ..saved.write import written

FORMAT = "sd35.cache 1"


def digest(*parts: str | bytes) -> str:
    """A hash of texts and bytes; where one ends counts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return total.hexdigest()[:32]


class Cache:
    """A folder of safetensors files, made by one model.

    Args:
        folder: made where it is missing.
        made_by: a hash of the weights that made what is in it.
    """

    def __init__(self, folder: Path, made_by: str) -> None:
        self.folder, self.made_by = folder, made_by

    def has(self, key: str) -> bool:
        """Whether a file of this key is there, of whatever model."""
        return self._path(key).exists()

    def kept(self, key: str, make: Callable[[], Mapping[str, Tensor]]) -> str:
        """See that a key is there and whole, by making it if it is not; gives the key back."""
        if self.has(key):
            self.read(key)
            return key
        self._path(key).parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
        with written(self._path(key), overwrite=True) as temporary:
            save_file(tensors, temporary, {"format": FORMAT, "made_by": self.made_by})
        return key

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of a key.

        Raises:
            SettingsError: the file is damaged, holds what is no number, or is another model's.
        """
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise SettingsError(
                f"{path} cannot be read ({error}): remove it, and it is made again"
            ) from error
        if metadata.get("format") != FORMAT or metadata.get("made_by") != self.made_by:
            raise SettingsError(
                f"{self.folder} holds what another model, or other settings, made ({path.name}): remove "
                "it, or name another folder"
            )
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise SettingsError(
                    f"{path} holds NaN or infinite values ({name}): remove it, and it is made again"
                )
        return tensors

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
