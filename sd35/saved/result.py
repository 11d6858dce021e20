"""What a generation gives."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from torch import Tensor

from flow import Companion
from vae.image import to_pil

from ..settings import Settings
from .png import check_keeping, save_pictures
from .state import State


@dataclass(frozen=True)
class Result:
    """Pictures and everything they came from. Tensors are float32 on the CPU."""

    image: Tensor
    """(B, 3, H, W), nominally in [-1, 1]: the pictures before they are rounded to 8 bits."""
    latents: Tensor
    """(B, 16, H/8, W/8), where the solver ended."""
    noise: Tensor
    """(B, 16, H/8, W/8), where it began."""
    settings: Settings
    """Complete: with the size and what the pictures were made with. `settings.of(k)` are image k's."""
    notes: tuple[str, ...] = ()
    """What a user should know of how the prompts were read: what was cut, above all."""
    companion: Companion | None = None
    """What a reversible solver leaves beside the latents, and what undoing the generation needs."""

    @cached_property
    def images(self) -> list[Image.Image]:
        """The pictures, B of them, in 8 bits."""
        return [to_pil(image) for image in self.image]

    def save(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        metadata: bool = True,
        bits: int = 8,
        keep_latents: bool = False,
    ) -> list[Path]:
        """Write the pictures as PNG, with the settings of each; see `save_pictures`.

        Args:
            path: of a single picture; several are numbered.
            overwrite: replace files that exist.
            metadata: write the settings into the pictures.
            bits: 8, or 16 for pictures that are to be inverted.
            keep_latents: also write into each picture the latents that it was decoded from, with what a
                reversible solver needs: the file then inverts as the latents do, and one of `bitexact` to the
                noise's very bits. Four bytes a latent value at most, and as much again for a companion.

        Raises:
            SettingsError: as `save_pictures`; or latents are kept without settings, or of pictures that were
                drawn together, whose bits none of them has alone.
        """
        if keep_latents:
            check_keeping(self.settings, metadata=metadata)
        states = [self.state().of(index) for index in range(len(self.image))] if keep_latents else None
        settings = [self.settings.of(index) for index in range(len(self.image))] if metadata else None
        return save_pictures(self.image, path, settings, states, overwrite=overwrite, bits=bits)

    def state(self) -> State:
        """The latents, with the companion of a reversible solver, as a state that can be saved.

        The noise goes with them where it was given: a seed would not tell it.
        """
        noise = self.noise if self.settings.seed is None else None
        return State(self.settings, self.latents, noise, self.companion)

    def __repr__(self) -> str:
        count, _, height, width = self.image.shape
        return f"Result({count} x {width} x {height}, {self.settings.prompts[0].text!r})"
