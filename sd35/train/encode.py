"""What a cache is filled with: latents of pictures, encodings of texts, each made once and alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from textenc import TextEncoder
from vae import VAE
from vae.image import read

from ..adapters.control import control_image
from ..errors import SettingsError, check_finite
from ..found import Found, read_part, read_text
from .buckets import fitted
from .cache import Cache, digest
from .log import bar

EMPTY, MIRRORED = "", "-mirrored"


def text_key(caption: str) -> str:
    """Where the encoding of a caption is kept."""
    return f"texts/{digest(caption)}"


def empty_key(tokens: int) -> str:
    """Where that of the empty text is kept, padded to so many tokens."""
    return f"texts/empty-{tokens}"


def encode_pictures(
    found: Found,
    wanted: Mapping[str, tuple[Path, tuple[int, int], str | None]],
    cache: Cache,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    progress: bool,
) -> None:
    """Fill the cache with the mean latents of pictures: key to path, size, and what it shows for control."""
    missing = [key for key in wanted if not cache.has(key)]
    for key in wanted.keys() - set(missing):
        cache.read(key)
    if not missing:
        return
    vae = cast(VAE, read_part(found, "vae", device, dtype))

    def encode(key: str) -> dict[str, Tensor]:
        path, size, control_type = wanted[key]
        image = fitted(read_whole(path), size)
        image = image if control_type is None else control_image(image, control_type)
        image = image.flip(3) if key.endswith(MIRRORED) else image
        with torch.no_grad():
            latents = vae.encode(image.to(device))
        return {"latents": check_finite(latents, "autoencoder (encoding)", latents.dtype)}

    for key in bar(missing, shown=progress, desc="pictures"):
        cache.kept(key, lambda key=key: encode(key))


def read_whole(path: Path) -> Tensor:
    """A picture (1, 3, H, W), to its end.

    Raises:
        SettingsError: it is damaged.
    """
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} is damaged ({error})") from error


def encode_texts(
    found: Found,
    captions: Sequence[str],
    cache: Cache,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    progress: bool = False,
) -> list[int]:
    """Fill the cache with the encodings of texts, each encoded alone, and of the empty text for dropping.

    Returns:
        The number of tokens of each.
    """
    text: TextEncoder | None = None

    def encode(*texts: str) -> dict[str, Tensor]:
        nonlocal text
        text = text or read_text(found, device, dtype)
        if text is None:
            raise SettingsError("this model has no text encoders, and the captions are not in the cache yet")
        with torch.no_grad():
            encoding = text.encode(texts).select(0)
        for tensor in (encoding.context, encoding.pooled):
            check_finite(tensor, "text encoders", tensor.dtype)
        return {"context": encoding.context, "pooled": encoding.pooled}

    tokens: dict[str, int] = {}
    for caption in bar(dict.fromkeys(captions), shown=progress, desc="captions"):
        key = cache.kept(text_key(caption), lambda caption=caption: encode(caption))
        tokens[caption] = count = cache.read(key)["context"].shape[1]
        # T5's pads are read like text: the empty text is padded to the length of those that it stands for.
        cache.kept(empty_key(count), lambda caption=caption: encode(EMPTY, caption))
    return [tokens[caption] for caption in captions]
