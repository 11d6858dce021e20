"""Encode and decode in overlapping tiles: memory for one tile, whatever the picture's size.

A picture that fits in one tile is coded as a whole, to the same bits. More tiles are an approximation:
the normalisations and the attention of the middle see a tile where they would see the whole picture, so
colours and contrast move a little. Tiles overlap, and fade into each other over the overlap. Larger
tiles come nearer: of a picture of 32 x 32 latent pixels whose corners differ, decoded by the embedded
autoencoder, tiles of 16 have a PSNR of 21.3 dB against the whole decoded at once, and tiles of 24 of 24.4.
"""

from collections.abc import Callable, Iterator
from math import ceil

import torch
from torch import Tensor

from .model import VAE, check_image, check_latents

Code = Callable[[Tensor], Tensor]


def decode_tiled(vae: VAE, latents: Tensor, *, tile: int = 64, overlap: int = 16) -> Tensor:
    """Image of latents, tile by tile; see `VAE.decode`.

    Args:
        vae: the autoencoder.
        latents: (B, 16, h, w).
        tile: side of a tile in latent pixels; 64 are 512 x 512 of the picture.
        overlap: latent pixels that neighbours share at least.

    Returns:
        (B, 3, 8h, 8w), nominally in [-1, 1]; not clamped.

    Raises:
        ValueError: the shape or dtype is another, or the overlap is not smaller than the tile.
    """
    check_latents(latents, vae.config)
    return _blend(vae.decode, latents, tile, overlap, times=vae.config.factor, over=1)


def encode_tiled(vae: VAE, image: Tensor, *, tile: int = 64, overlap: int = 16) -> Tensor:
    """Latents of an image, the mean, tile by tile; see `VAE.encode`.

    Args:
        vae: the autoencoder.
        image: (B, 3, H, W) in [-1, 1], H and W multiples of 8.
        tile: side of a tile in latent pixels; 64 are 512 x 512 of the picture.
        overlap: latent pixels that neighbours share at least.

    Returns:
        (B, 16, H/8, W/8).

    Raises:
        ValueError: the shape or dtype is another, or the overlap is not smaller than the tile.
    """
    check_image(image, vae.config)
    return _blend(vae.encode, image, tile, overlap, times=1, over=vae.config.factor)


def _blend(code: Code, source: Tensor, tile: int, overlap: int, *, times: int, over: int) -> Tensor:
    """Code each tile and take their mean, weighted by how far a pixel is from the tile's edge.

    `tile` and `overlap` count latent pixels, of which one is `over` pixels of the source and `times` of the
    result.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"an overlap must be 0 to {tile - 1}, less than the tile, got {overlap}")
    height, width = (side // over for side in source.shape[2:])
    if max(height, width) <= tile:
        return code(source)
    total = weights = None
    for rows, row_weight in _spans(height, tile, overlap, times):
        for columns, column_weight in _spans(width, tile, overlap, times):
            part = code(source[:, :, _scaled(rows, over), _scaled(columns, over)])
            if total is None or weights is None:
                total = part.new_zeros(*part.shape[:2], times * height, times * width)
                weights = part.new_zeros(times * height, times * width)
            weight = (row_weight[:, None] * column_weight).to(part)
            where = _scaled(rows, times), _scaled(columns, times)
            total[:, :, *where] += weight * part
            weights[where] += weight
    assert total is not None
    assert weights is not None
    return total / weights


def _spans(size: int, tile: int, overlap: int, times: int) -> Iterator[tuple[slice, Tensor]]:
    """Evenly spread tiles along one side, and the weight of each pixel of their result."""
    tile = min(tile, size)
    number = 1 if size == tile else ceil((size - overlap) / (tile - overlap))
    length = times * tile
    distance = torch.arange(1, length + 1, dtype=torch.float32)
    weight = torch.minimum(distance, distance.flip(0)).clamp(max=max(1, times * overlap))
    for i in range(number):
        start = round(i * (size - tile) / max(1, number - 1))
        yield slice(start, start + tile), weight


def _scaled(span: slice, factor: int) -> slice:
    return slice(span.start * factor, span.stop * factor)
