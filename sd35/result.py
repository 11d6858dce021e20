"""What a generation gives, and how it is saved."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from torch import Tensor

from flow import Companion
from vae.image import save_png16, to_pil

from .errors import SettingsError
from .files import check_output, written
from .metadata import png_info
from .report import Recording, as_page
from .settings import Settings
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
    recording: Recording | None = None
    """What was noted down of every step, where `generate` was told to record."""

    @cached_property
    def images(self) -> list[Image.Image]:
        """The pictures, B of them, in 8 bits."""
        return [to_pil(image) for image in self.image]

    def save(
        self, path: str | Path, *, overwrite: bool = False, metadata: bool = True, bits: int = 8
    ) -> list[Path]:
        """Write the pictures as PNG, each whole or not at all.

        Args:
            path: of a single picture. Several are numbered: picture-000.png, picture-001.png.
            overwrite: replace files that exist.
            metadata: write the settings into the pictures.
            bits: 8, or 16 for pictures that are to be inverted.

        Returns:
            The paths of the pictures.

        Raises:
            SettingsError: the name does not end in .png, or `bits` is neither 8 nor 16.
            OSError: a path cannot be written; FileExistsError where it exists. Nothing is written then.
        """
        paths = check_pictures(path, len(self.image), overwrite=overwrite, bits=bits)
        for index, one in enumerate(paths):
            info = png_info(self.settings.of(index)) if metadata else None
            with written(one, overwrite=overwrite) as temporary:
                if bits == 16:
                    save_png16(self.image[index], temporary, info)
                else:
                    self.images[index].save(temporary, format="PNG", pnginfo=info)
        return paths

    def state(self) -> State:
        """The latents, with the companion of a reversible solver, as a state that can be saved.

        The noise goes with them where it was given: a seed would not tell it.
        """
        noise = self.noise if self.settings.seed is None else None
        return State(self.settings, self.latents, noise, self.companion)

    def report(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a page that shows the generation from inside: one HTML file, to be opened in a browser.

            pipe.generate("a red circle", record=True).report("circle.html")

        Args:
            path: of the page.
            overwrite: replace a file that exists.

        Returns:
            The path of the page.

        Raises:
            SettingsError: nothing was recorded, or the name does not end in .html.
            OSError: the path cannot be written; FileExistsError where it exists.
        """
        if self.recording is None:
            raise SettingsError("nothing was recorded of this: pass record=True to generate or run")
        path = Path(path)
        check_output([path], suffix=".html", overwrite=overwrite)
        page = as_page(self.recording, self.images, self.settings, self.notes)
        with written(path, overwrite=overwrite) as temporary:
            temporary.write_text(page, encoding="utf-8")
        return path


def check_pictures(path: str | Path, count: int, *, overwrite: bool, bits: int) -> list[Path]:
    """See that pictures could be saved; what `Result.save` raises is raised here.

    Returns:
        Their paths: the path itself for one, else with numbers before its suffix.
    """
    path = Path(path)
    paths = [path]
    if count > 1:
        paths = [path.with_name(f"{path.stem}-{index:03d}{path.suffix}") for index in range(count)]
    if bits not in (8, 16):
        raise SettingsError(f"a PNG has 8 or 16 bits a channel, not {bits!r}")
    check_output(paths, suffix=".png", overwrite=overwrite)
    return paths
