"""Reading the pictures that a user gives, and telling what had to be changed to read them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from vae.image import without_text

from .errors import SettingsError
from .images import as_image
from .kinds import NONE
from .shown import Shown

ORIENTATION = 0x0112
"""The EXIF tag; 1 is upright."""
AS_THEY_ARE = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "La", "RGBa", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes that become RGB without a loss."""


@dataclass(frozen=True)
class Opened:
    """One picture, or its latents."""

    data: Tensor
    """(1, 3, H, W) in [-1, 1]; latents are (1, 16, h, w)."""
    shown: Shown
    notes: tuple[str, ...] = ()
    """What was changed to read it."""

    @property
    def name(self) -> str:
        """For messages."""
        return Path(self.shown.source).name or "the picture"


def open_pictures(given: Any, what: str = "image") -> list[Opened]:
    """Read pictures in any form.

    Args:
        given: a path, a Pillow picture, an array, a tensor (B, 3, H, W) in [-1, 1] or latents (B, 16, h, w);
            a saved record of one; or a list of any of these.
        what: it is for, in messages.

    Raises:
        OSError: there is no such file.
        SettingsError: it is none of these, or a saved record's picture is gone or another one now.
        ValueError: what `vae.image` says of a picture.
    """
    if given is None or (isinstance(given, str) and given == NONE):
        return []
    if isinstance(given, tuple | list):
        return [] if list(given) == [NONE] else [one for each in given for one in open_pictures(each, what)]
    if isinstance(given, Mapping):
        given = Shown.of(given)
    if isinstance(given, Shown):
        return [_again(given, what)]
    if isinstance(given, Tensor) and given.ndim == 4 and given.shape[1] != 3 and given.is_floating_point():
        data = given.detach().float().cpu()  # latents
        if not bool(data.isfinite().all()):
            raise SettingsError(f"the latents given as {what} hold NaN or infinity")
    else:
        data = as_image(given).detach().float().cpu()
    source, notes = "", ()
    if isinstance(given, str | Path):
        source = str(Path(given).expanduser().absolute())
        with Path(given).open("rb") as file, Image.open(without_text(file)) as picture:
            notes = tuple(changes_of(picture))
    elif isinstance(given, Image.Image):
        notes = tuple(changes_of(given))
    named = f"{Path(source).name or what}: "
    return [
        Opened(one, Shown(source, digest_of(one)), tuple(named + note for note in notes))
        for one in data.split(1)
    ]


def _again(shown: Shown, what: str) -> Opened:
    """The picture of a saved record."""
    option = f"--{what.replace(' ', '-')}"
    if not shown.source:
        raise SettingsError(
            f"the {what} that this was made with is {shown}, which is not saved with it: give it again "
            f"({option}), or leave it out ({option} {NONE})"
        )
    try:
        (opened,) = open_pictures(shown.source, what)
    except FileNotFoundError as error:
        raise SettingsError(
            f"the {what} that this was made with is not there: {shown}. Give it again ({option}), or leave "
            f"it out ({option} {NONE})"
        ) from error
    if shown.digest and opened.shown.digest != shown.digest:
        raise SettingsError(
            f"the {what} that this was made with was {shown}, and that file holds another picture now "
            f"(SHA-256 {opened.shown.digest[:12]}): give the right one ({option})"
        )
    return opened


def digest_of(data: Tensor) -> str:
    """SHA-256 of an image's or of latents' shape and float32 values."""
    digest = sha256(str(tuple(data.shape)).encode())
    digest.update(data.contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def changes_of(picture: Image.Image) -> Iterator[str]:
    """What reading a picture as RGB changes in it, in a user's words; nothing is changed otherwise."""
    if picture.getexif().get(ORIENTATION, 1) != 1:
        yield "turned upright, as its EXIF orientation says"
    if getattr(picture, "n_frames", 1) > 1:
        yield f"only the first of its {picture.n_frames} frames is read"  # pyright: ignore[reportAttributeAccessIssue]
    if picture.has_transparency_data and _least_alpha(picture) < 255:
        yield "its transparent parts are laid over white"
    if picture.mode not in AS_THEY_ARE:
        yield f"converted from {picture.mode} to RGB, without a colour profile"
    elif (profile := _profile(picture)) and "srgb" not in profile.lower():
        yield f"its colour profile ({profile}) is not applied: the numbers are read as sRGB"


def _least_alpha(picture: Image.Image) -> int:
    return int(np.asarray(picture.convert("RGBA"))[..., 3].min())


def _profile(picture: Image.Image) -> str:
    """The name of a picture's colour profile; empty where it has none."""
    profile = picture.info.get("icc_profile")
    if not profile:
        return ""
    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(BytesIO(profile))).strip()
    except (ImageCms.PyCMSError, OSError):
        return "damaged"


def open_masks(given: Any, what: str = "mask") -> list[Opened]:
    """Read masks: what `open_pictures` takes, and booleans or floats in [0, 1], (B, 1, H, W) or (H, W).

    Raises:
        SettingsError: as `open_pictures`.
    """
    if isinstance(given, np.ndarray) and given.dtype == bool:
        given = torch.from_numpy(given)
    if isinstance(given, Tensor) and not (given.ndim == 4 and given.shape[1] == 3):
        given = given[None, None] if given.ndim == 2 else given[:, None] if given.ndim == 3 else given
        is_unit = given.dtype == torch.bool or (
            given.is_floating_point() and bool(((given >= 0) & (given <= 1)).all())
        )
        if given.ndim != 4 or given.shape[1] != 1 or not is_unit:
            raise SettingsError(
                "a mask given as a tensor must be booleans or floats in [0, 1], (H, W) or (B, 1, H, W), got "
                f"{given.dtype} {tuple(given.shape)}"
            )
        data = (2 * given.float() - 1).expand(-1, 3, -1, -1).contiguous().cpu()
        return [Opened(one, Shown("", digest_of(one))) for one in data.split(1)]
    return open_pictures(given, what)
