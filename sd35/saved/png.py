"""The settings of a picture inside its PNG file.

Two text chunks: `parameters`, the lines that many tools write and show, for people; and `sd35`, the JSON of
`Settings`, from which the picture can be made again. A private chunk may hold the latents beside them, with a
hash of the pixels that they were decoded to.
"""

import hashlib
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from vae.image import png_chunks, save_png16, to_pil, without_text

from ..errors import SettingsError
from ..settings import Settings
from .state import State
from .write import check_output, written

CHUNK = "sd35"
COMMON = "parameters"
KEPT = b"sdLA"
"""The chunk of kept latents: by its letters ancillary, private, not to be copied when pixels are changed."""


def png_info(settings: Settings) -> PngImagePlugin.PngInfo:
    """The text chunks of a picture, as `PIL.Image.Image.save` takes them."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(COMMON, parameters(settings))
    info.add_text(CHUNK, settings.to_json())
    return info


def parameters(settings: Settings) -> str:
    """The settings of one picture in the common form: prompt, negative prompt, and a line of values.

    Control characters, which a text chunk cannot hold, become spaces here; the JSON keeps them.
    """
    (prompt,) = settings.prompts
    values = {
        "Steps": settings.steps,
        "Sampler": settings.solver,
        "Schedule type": settings.schedule_name,
        "CFG scale": f"{settings.guidance_scale:g}",
        "Seed": "given noise" if settings.seed is None else settings.seed,
        "Size": f"{settings.width}x{settings.height}",
        "Model": Path(settings.model).stem or "unknown",
        "Shift": f"{settings.schedule_shift:g}",
        "Version": f"sd35 {settings.made_with.get('sd35', '')}".rstrip(),
    }
    if settings.image and settings.strength < 1:
        values["Denoising strength"] = f"{settings.strength:g}"
    lines = [_printable(prompt.text)]
    if settings.negative.text:
        lines.append(f"Negative prompt: {_printable(settings.negative.text)}")
    lines.append(", ".join(f"{name}: {value}" for name, value in values.items()))
    return "\n".join(lines)


def check_pictures(path: str | Path, count: int, *, overwrite: bool, bits: int) -> list[Path]:
    """See that pictures could be saved; what `save_pictures` raises is raised here.

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


def save_pictures(
    image: Tensor,
    path: str | Path,
    settings: Sequence[Settings] | None,
    states: Sequence[State] | None = None,
    *,
    overwrite: bool = False,
    bits: int = 8,
) -> list[Path]:
    """Write pictures as PNG, each whole or not at all.

    Args:
        image: (B, 3, H, W), nominally in [-1, 1].
        path: of a single picture. Several are numbered: picture-000.png, picture-001.png.
        settings: of each picture, to be written into it; None leaves them out.
        states: of each picture, to be written into it beside its settings; None leaves them out.
        overwrite: replace files that exist.
        bits: 8, or 16 for pictures that are to be inverted.

    Returns:
        The paths of the pictures.

    Raises:
        SettingsError: the name does not end in .png, or `bits` is neither 8 nor 16.
        OSError: a path cannot be written; FileExistsError where it exists. Nothing is written then.
    """
    paths = check_pictures(path, len(image), overwrite=overwrite, bits=bits)
    for index, one in enumerate(paths):
        info = None if settings is None else png_info(settings[index])
        if info is not None and states is not None:
            shown = quantised(image[index : index + 1], bits)
            info.add(KEPT, pixels_hash(shown) + zlib.compress(states[index].to_bytes(), 9))
        with written(one, overwrite=overwrite) as temporary:
            if bits == 16:
                save_png16(image[index], temporary, info)
            else:
                to_pil(image[index]).save(temporary, format="PNG", pnginfo=info)
    return paths


def check_keeping(settings: Settings, *, metadata: bool) -> None:
    """See that latents can be kept in pictures.

    Raises:
        SettingsError: they cannot; see `Result.save`.
    """
    if not metadata:
        raise SettingsError("latents are kept beside the settings: keep_latents needs metadata")
    if settings.solver == "bitexact" and settings.images > 1 and settings.batch_size > 1:
        raise SettingsError(
            "to be undone to the last bit from its own file a picture must be drawn alone: batch_size 1"
        )


def quantised(image: Tensor, bits: int) -> Tensor:
    """An image as it is read from a PNG of so many bits."""
    most = 255 if bits == 8 else 65535
    return ((image.float() + 1) / 2).clamp(0, 1).mul(most).round() / most * 2 - 1


def pixels_hash(image: Tensor) -> bytes:
    """SHA-256 of the pixels of an image, to 16 bits: 32 bytes."""
    values = ((image + 1) / 2 * 65535).round().to(torch.int32).cpu().contiguous()
    return hashlib.sha256(values.numpy().astype("<i4").tobytes()).digest()


def read_kept(path: str | Path, image: Tensor) -> tuple[State | None, str | None]:
    """The latents kept in a picture, where its pixels are still theirs.

    Args:
        path: of the picture.
        image: as it was read, (1, 3, H, W).

    Returns:
        The state, or None; and what a user should know, or None.

    Raises:
        SettingsError: what is kept is damaged.
    """
    with Path(path).open("rb") as file:
        held = next((data for name, data in png_chunks(file) if name == KEPT), None)
    if held is None:
        return None, None
    if held[:32] != pixels_hash(image):
        return None, f"{path} keeps latents, but its pixels are no longer theirs: the pixels are inverted"
    try:
        data = zlib.decompress(held[32:])
    except zlib.error as error:
        raise SettingsError(f"{path}: the latents kept in it are damaged: {error}") from error
    return State.from_bytes(data, Path(path)), None


def read_settings(path: str | Path) -> Settings:
    """Read the settings of a picture that was saved with them.

    Raises:
        OSError: there is no such file, or it may not be read.
        SettingsError: it is no PNG, has no settings in it, or damaged ones.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no picture {path}")
    with Path(path).open("rb") as file:
        try:
            with Image.open(without_text(file)) as picture:
                picture.load()  # a file that was cut off is told
        except UnidentifiedImageError:
            raise SettingsError(
                f"{path} cannot be read as a picture: it is damaged, or of no kind that Pillow reads"
            ) from None
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for damage
            raise SettingsError(f"{path} cannot be read as a picture: {error}") from error
        file.seek(0)
        start = CHUNK.encode() + b"\0"
        texts = [data for name, data in png_chunks(file) if name == b"tEXt" and data.startswith(start)]
        text = texts[0].removeprefix(start).decode("latin-1") if texts else None
    if text is None:
        raise SettingsError(f"{path} holds no settings: it was not made here, or was saved without them")
    return Settings.from_json(text)


def _printable(text: str) -> str:
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", text)
