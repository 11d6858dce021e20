"""The settings of a picture inside its PNG file.

Two text chunks: `parameters`, the lines that many tools write and show, for people; and `sd35`, the JSON of
`Settings`, from which the picture can be made again.
"""

import re
from pathlib import Path

from PIL import Image, PngImagePlugin

from .errors import SettingsError
from .settings import Settings

CHUNK = "sd35"
COMMON = "parameters"


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
        "Schedule type": settings.schedule,
        "CFG scale": f"{settings.guidance_scale:g}",
        "Seed": "given noise" if settings.seed is None else settings.seed,
        "Size": f"{settings.width}x{settings.height}",
        "Model": Path(settings.model).stem or "unknown",
        "Shift": f"{settings.schedule_shift:g}",
        "Version": f"sd35 {settings.made_with.get('sd35', '')}".rstrip(),
    }
    lines = [_printable(prompt.text)]
    if settings.negative.text:
        lines.append(f"Negative prompt: {_printable(settings.negative.text)}")
    lines.append(", ".join(f"{name}: {value}" for name, value in values.items()))
    return "\n".join(lines)


def read_settings(path: str | Path) -> Settings:
    """Read the settings of a picture that was saved with them.

    Raises:
        OSError: there is no such file, or it may not be read.
        SettingsError: it is no PNG, has no settings in it, or damaged ones.
    """
    try:
        with Image.open(path) as picture:
            picture.load()  # text may stand behind the pixels
            text = getattr(picture, "text", {}).get(CHUNK)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no picture {path}") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for damage
        if isinstance(error, PermissionError | IsADirectoryError):
            raise
        raise SettingsError(f"{path} cannot be read as a picture: {error}") from error
    if text is None:
        raise SettingsError(f"{path} holds no settings: it was not made here, or was saved without them")
    return Settings.from_json(text)


def _printable(text: str) -> str:
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", text)
