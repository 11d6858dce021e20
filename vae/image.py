"""Pictures to tensors and back: the only file here that knows numpy and Pillow.

A tensor is an image (B, 3, H, W) in [-1, 1]. Eight bits lose what an inversion needs, so PNG files
of 16 bits a channel are written and read as well.
"""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

Rounding = Literal["diffusers", "reference"]
"""How 255 · (x + 1) / 2 becomes an integer: "diffusers" rounds, the official code ("reference") truncates.

Truncation darkens by half a step on average; the two differ in about every second value."""


def to_tensor(picture: Image.Image | np.ndarray) -> Tensor:
    """Turn a picture into an image: 2 · value / 255 - 1 (65535 in place of 255 for 16 bits).

    Args:
        picture: a Pillow image of any mode but "F", or an array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) of uint8 or uint16. Grey becomes three equal channels, transparency is laid
            over white, and a Pillow image's EXIF orientation is applied.

    Returns:
        (1, 3, H, W) float32 in [-1, 1].

    Raises:
        ValueError: another dtype (a float array does not say whether it spans [0, 1] or [-1, 1]),
            another shape, or an empty picture.
    """
    values = _pixels(picture) if isinstance(picture, Image.Image) else picture
    if values.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"a picture must hold uint8 or uint16 values, got {values.dtype}; "
            "floats in [-1, 1] need no conversion: make a tensor (1, 3, H, W) of them"
        )
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or not values.size:
        raise ValueError(f"a picture must be (H, W) or (H, W, 1, 3 or 4) and not empty, got {values.shape}")
    unit = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)  # (H, W, C) in [0, 1]
    if unit.shape[2] == 4:
        unit = unit[:, :, :3] * unit[:, :, 3:] + (1 - unit[:, :, 3:])
    unit = np.broadcast_to(unit, (*unit.shape[:2], 3))
    return torch.from_numpy(2 * unit - 1).movedim(2, 0)[None].contiguous()


def to_uint8(image: Tensor, rounding: Rounding = "diffusers") -> Tensor:
    """Values of an image in 8 bits, clamped first; 0 is -1 and 255 is 1.

    Args:
        image: (B, 3, H, W), nominally in [-1, 1].
        rounding: whose conversion, see `Rounding`.

    Returns:
        The same shape in uint8.

    Raises:
        ValueError: NaN or infinite values, an unknown rounding, or another shape.
    """
    if rounding not in get_args(Rounding):
        raise ValueError(f"rounding must be one of {', '.join(get_args(Rounding))}, got {rounding!r}")
    scaled = 255 * _unit(image)
    return (scaled.round() if rounding == "diffusers" else scaled).to(torch.uint8)


def to_pil(image: Tensor, rounding: Rounding = "diffusers") -> Image.Image:
    """Turn one image into an 8-bit picture.

    Args:
        image: (1, 3, H, W) or (3, H, W), nominally in [-1, 1]; values beyond are clamped.
        rounding: whose conversion, see `Rounding`.

    Raises:
        ValueError: NaN or infinite values, an unknown rounding, or another shape. For a batch,
            call it on each `image[k]`.
    """
    return Image.fromarray(to_uint8(_single(image), rounding)[0].movedim(0, 2).cpu().numpy())


def save_png16(image: Tensor, path: str | Path, info: PngImagePlugin.PngInfo | None = None) -> None:
    """Write one image as a PNG of 16 bits a channel, which Pillow cannot.

    Rounds to the nearest of 65536 values: an error of 1.5e-5 at most, and 107 dB or more.

    Args:
        image: (1, 3, H, W) or (3, H, W), nominally in [-1, 1]; values beyond are clamped.
        path: the file; an existing one is replaced.
        info: text chunks, as `PIL.Image.Image.save` takes them.

    Raises:
        ValueError: NaN or infinite values, or another shape.
    """
    unit = _unit(_single(image))[0].movedim(0, 2).cpu().numpy()  # (H, W, 3)
    height, width = unit.shape[:2]
    rows = np.rint(unit * 65535).astype(">u2", order="C").view(np.uint8).reshape(height, 6 * width)
    rows[1:] -= rows[:-1].copy()  # filter 2, "up": each byte less the byte above it, modulo 256
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), rows], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)  # 16 bits; colour type 2 is RGB
    extra = [] if info is None else [(chunk[0], chunk[1]) for chunk in info.chunks]
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")]
    Path(path).write_bytes(PNG + b"".join(_chunk(name, data) for name, data in chunks))


def read(path: str | Path) -> Tensor:
    """Read a picture file of any kind Pillow knows, with all 16 bits where an RGB(A) PNG has them.

    Returns:
        (1, 3, H, W) float32 in [-1, 1]; see `to_tensor` for grey, transparency and orientation.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is no picture, or a damaged one.
    """
    with Path(path).open("rb") as stored:
        file = without_text(stored)
        try:
            with Image.open(file) as picture:
                packing = picture.tile[0].args if picture.format == "PNG" else None
                if packing not in ("RGB;16B", "RGBA;16B") or "transparency" in picture.info:
                    return to_tensor(picture)
                high = _pixels(picture)
            # Pillow unpacks the first of two bytes. Told that the file is little-endian, it takes the second.
            with Image.open(file) as picture:
                picture.tile = [picture.tile[0]._replace(args=packing.replace("16B", "16L"))]
                low = _pixels(picture)
        except UnidentifiedImageError:
            raise ValueError(
                f"{path} cannot be read as a picture: it is damaged, or of no kind that Pillow reads"
            ) from None
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for damage
            raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    return to_tensor(high.astype(np.uint16) << 8 | low)


def fit(picture: Image.Image, width: int | None = None, height: int | None = None) -> Image.Image:
    """Scale a picture until it covers a size, and crop what overlaps, equally on both sides.

    Args:
        picture: any size; its EXIF orientation is applied.
        width: in pixels; None takes the multiple of 16 nearest to the picture's own.
        height: likewise.

    Returns:
        The picture in that size, resampled with a Lanczos filter; unchanged if it had that size.
    """
    picture = ImageOps.exif_transpose(picture)
    wanted = (_or_nearest(width, picture.width), _or_nearest(height, picture.height))
    return picture if picture.size == wanted else ImageOps.fit(picture, wanted, Image.Resampling.LANCZOS)


PNG = b"\x89PNG\r\n\x1a\n"


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG file, each its name and its data; they end where the file is damaged or ends."""
    if file.read(len(PNG)) != PNG:
        return
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        data = file.read(length)
        file.read(4)  # the checksum
        yield name, data


def without_text(file: BinaryIO) -> BinaryIO:
    """A PNG without its text, of which Pillow refuses to read much; another file as it is.

    Other tools write whole programs into their pictures.
    """
    is_png = file.read(len(PNG)) == PNG
    file.seek(0)
    if not is_png or not any(name in (b"tEXt", b"zTXt", b"iTXt") for name, _ in png_chunks(file)):
        file.seek(0)
        return file
    file.seek(len(PNG))
    kept = [PNG]
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        rest = file.read(length + 4)
        kept += [] if name in (b"tEXt", b"zTXt", b"iTXt") else [head, rest]
    return BytesIO(b"".join(kept))


def _or_nearest(asked: int | None, own: int) -> int:
    """The size asked for, or the multiple of 16 nearest to a picture's own."""
    return max(round(own / 16), 1) * 16 if asked is None else asked


def _pixels(picture: Image.Image) -> np.ndarray:
    """Upright values (H, W, 3 or 4) in uint8, or (H, W) in uint16 for grey of 16 bits."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"a picture of mode {picture.mode!r} does not say what its white is; "
            "pass an array of uint8 or uint16 instead"
        )
    return np.asarray(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))


def _unit(image: Tensor) -> Tensor:
    """(B, 3, H, W), checked, from [-1, 1] to [0, 1] in float32 or better, and clamped."""
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise ValueError(f"an image must be (B, 3, H, W) floats, got {tuple(image.shape)} of {image.dtype}")
    broken = int((~image.isfinite()).sum())
    if broken:
        raise ValueError(
            f"the image has {broken} NaN or infinite values of {image.numel()} ({image.dtype}); "
            "a float16 autoencoder may overflow: run it in bfloat16 or float32"
        )
    wide = image.detach() if image.dtype == torch.float64 else image.detach().float()
    return ((wide + 1) / 2).clamp(0, 1)


def _single(image: Tensor) -> Tensor:
    """(1, 3, H, W) of that or of (3, H, W)."""
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"one image at a time: expected (1, 3, H, W) or (3, H, W), got {tuple(image.shape)}")
    return image


def _chunk(name: bytes, data: bytes) -> bytes:
    """A PNG chunk: length, name, data, checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
