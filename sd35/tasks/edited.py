"""What an edit gives."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from torch import Tensor

from vae.image import to_pil

from ..saved.png import save_pictures
from ..settings import Settings


@dataclass(frozen=True)
class Edited:
    """Pictures that were edited. Tensors are float32 on the CPU."""

    image: Tensor
    """(B, 3, H, W), nominally in [-1, 1]."""
    latents: Tensor
    """(B, 16, h, w)."""
    settings: Settings
    """Of the second half, with the other prompt. They do not make the picture again by themselves."""
    notes: tuple[str, ...] = ()
    """What a user should know: where the inversion did not converge, or nothing pulls toward the picture."""

    @cached_property
    def images(self) -> list[Image.Image]:
        """The pictures, B of them, in 8 bits."""
        return [to_pil(image) for image in self.image]

    def save(self, path: str | Path, *, overwrite: bool = False, bits: int = 8) -> list[Path]:
        """Write the pictures as PNG; as `Result.save`, without settings, which could not draw them again."""
        return save_pictures(self.image, path, None, overwrite=overwrite, bits=bits)

    def __repr__(self) -> str:
        count, _, height, width = self.image.shape
        return f"Edited({count} x {width} x {height}, {self.settings.prompts[0].text!r})"
