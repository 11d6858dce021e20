"""Sizes that pictures are cut to, and the order in which batches of one size are learned from.

NovelAI's aspect-ratio buckets: a batch has one size, and pictures keep their shape within a few pixels.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = 2.0
"""The longest picture is so many times as long as it is wide."""


def bucket_sizes(resolution: int, *, multiple: int, longest: int) -> list[tuple[int, int]]:
    """Widths and heights of about resolution² pixels and no more, the square among them.

    Args:
        resolution: side of the square.
        multiple: of which every side is one: the autoencoder's factor times a patch, 16.
        longest: side that the model draws.
    """
    sizes = {(resolution, resolution)}
    for width in range(multiple, longest + 1, multiple):
        height = min(resolution**2 // width // multiple * multiple, longest)
        if height and max(width, height) <= SHAPES * min(width, height):
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def nearest(size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose shape is nearest to a picture's: the least |log| of the ratio, then the largest."""

    def distance(bucket: tuple[int, int]) -> tuple[float, int]:
        return abs(math.log(bucket[0] * size[1] / (bucket[1] * size[0]))), -bucket[0] * bucket[1]

    return min(sizes, key=distance)


def fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale an image (1, 3, H, W) until it covers a size, and cut the middle out: (1, 3, height, width)."""
    width, height = size
    scale = max(width / image.shape[3], height / image.shape[2])
    covering = [
        max(round(scale * side), least) for side, least in zip(image.shape[2:], (height, width), strict=True)
    ]
    if tuple(covering) != tuple(image.shape[2:]):
        image = F.interpolate(image, covering, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return image[:, :, top : top + height, left : left + width].contiguous()


def batches(groups: Sequence[Hashable], size: int, generator: torch.Generator) -> list[list[int]]:
    """One epoch: batches of samples of one group, each sample at least once.

    A group that does not divide is filled up from its beginning, so that every batch is full.

    Args:
        groups: of each sample.
        size: of a batch.
        generator: of the order, on the CPU.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index in torch.randperm(len(groups), generator=generator).tolist():
        members[groups[index]].append(index)
    epoch = []
    for own in members.values():
        full = own * size  # a group smaller than a batch comes more than once
        epoch += [full[start : start + size] for start in range(0, len(own), size)]
    order = torch.randperm(len(epoch), generator=generator).tolist()
    return [epoch[index] for index in order]
