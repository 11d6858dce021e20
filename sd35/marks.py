"""Marks in the noise that a picture is drawn from, each by a secret key.

tree rings          rings of chosen values in the noise's Fourier transform (Wen et al. 2023,
arXiv:2305.20030)
Gaussian shading    the signs of the noise spell an encrypted message, many times over (Yang et al. 2024,
arXiv:2404.04956)
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from .noise import draw_noise, generators

OTHERS = 999
"""Keys that a key is compared with."""
KEYS = 2**32 - OTHERS
"""Keys are below this: the others are the last seeds there are, so that no user's key is among them."""
FOUND = 0.01
"""The share of keys, its own included, that may agree as well as a key does where its mark is found."""


class Mark(Protocol):
    """A mark for noise (B, C, h, w) of one shape; the key decides which."""

    def hide(self, noise: Tensor, keys: Sequence[int]) -> Tensor:
        """Noise that bears the mark, each of its own key: near to `noise`, and still normally distributed."""
        ...

    def agreement(self, noise: Tensor, keys: Sequence[int]) -> Tensor:
        """How well each key agrees with each noise, (keys, B); more is better."""
        ...


class TreeRings:
    """Rings around the lowest frequency, each of one real value, in the first channels."""

    def __init__(self, shape: Sequence[int], *, channels: int = 4) -> None:
        height, width = shape[-2:]
        self.channels = channels
        y, x = (torch.fft.fftfreq(side) * side for side in (height, width))
        distance = torch.hypot(y[:, None], x).round().long()  # (h, w), whole rings
        self.radius = max(min(height, width) // 3, 1)
        self.mask = distance <= self.radius
        self.ring = distance[self.mask]  # of each coefficient within
        self.scale = (height * width) ** 0.5  # the deviation of a coefficient of white noise

    def hide(self, noise: Tensor, keys: Sequence[int]) -> Tensor:
        """See `Mark`."""
        transform = torch.fft.fft2(noise)
        transform[:, : self.channels, self.mask] = self._values(keys).to(transform)
        return torch.fft.ifft2(transform).real

    def agreement(self, noise: Tensor, keys: Sequence[int]) -> Tensor:
        """See `Mark`: the projection on the key's values, which no size of theirs favours."""
        found = torch.fft.fft2(noise)[:, : self.channels, self.mask].real.flatten(1)  # (B, coefficients)
        values = self._values(keys).to(found).flatten(1)
        return values @ found.T / values.norm(dim=1, keepdim=True)

    def _values(self, keys: Sequence[int]) -> Tensor:
        """The value of every coefficient, (keys, channels, coefficients); real, so that noise stays real."""
        rings = draw_noise(generators(keys), (self.channels, self.radius + 1))
        return self.scale * rings[..., self.ring]


class GaussianShading:
    """A message, every bit of it many times, ciphered by a stream of signs: both drawn from the key."""

    def __init__(self, shape: Sequence[int], *, bits: int = 64) -> None:
        self.shape, self.bits = tuple(shape), bits

    def hide(self, noise: Tensor, keys: Sequence[int]) -> Tensor:
        """See `Mark`: values keep their sizes, and their signs are the ciphered message."""
        signs = [message[:, None] * stream for message, stream in map(self._secret, keys)]
        return noise.abs() * torch.stack(signs).reshape(noise.shape).to(noise)

    def agreement(self, noise: Tensor, keys: Sequence[int]) -> Tensor:
        """See `Mark`: the share of the message's bits that are read right, each by the vote of its copies."""
        signs = noise.sign().reshape(len(noise), self.bits, -1)  # (B, bits, copies)
        shares = []
        for key in keys:
            message, stream = (one.to(noise) for one in self._secret(key))
            votes = (signs * stream).sum(2)
            shares.append((votes * message > 0).float().mean(1))
        return torch.stack(shares)

    def _secret(self, key: int) -> tuple[Tensor, Tensor]:
        """Message (bits,) and stream (bits, copies), of 1 and -1."""
        copies = torch.Size(self.shape).numel() // self.bits
        drawn = draw_noise(generators([key]), (self.bits, 1 + copies))[0].sign()
        return drawn[:, 0], drawn[:, 1:]


def shares_as_good(mark: Mark, noise: Tensor, keys: Sequence[int]) -> Tensor:
    """For each noise, the share of keys that agree with it as well as its own does, that included: (B,)."""
    own, others = mark.agreement(noise, keys).diagonal(), mark.agreement(noise, range(KEYS, KEYS + OTHERS))
    return (1 + (others >= own).sum(0)) / (1 + OTHERS)


MARKS: Mapping[str, Callable[[Sequence[int]], Mark]] = MappingProxyType(
    {"tree_rings": TreeRings, "gaussian_shading": GaussianShading}
)
"""The marks by name, each made for the shape (C, h, w) of the noise."""
