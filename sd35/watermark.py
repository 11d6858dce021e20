"""Marks that are hidden in the noise of a picture, and looked for in the noise that inverting it finds.

    tree rings          rings of chosen values in the noise's Fourier transform (Wen et al. 2023,
                        arXiv:2305.20030)
    Gaussian shading    the signs of the noise spell an encrypted message, many times over (Yang et al. 2024,
                        arXiv:2404.04956)

A key is a whole number, from which the mark is drawn. It counts as found where its key agrees with the noise
better than 99 % of other keys do, so that one picture in a hundred that does not bear it is expected to pass.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .noise import draw_noise, generators

FOUND = 0.01
"""The share of keys, its own included, that may agree as well as the key does."""
OTHERS = 999
"""Keys that one is compared with."""
FIRST_OTHER = 10_000
"""The first of them; the others follow it, but for the one that is looked for."""


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
        y, x = (torch.fft.fftfreq(side, dtype=torch.float32, device="cpu") * side for side in (height, width))
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


MARKS: Mapping[str, Callable[[Sequence[int]], Mark]] = {
    "tree_rings": TreeRings,
    "gaussian_shading": GaussianShading,
}
"""By name, what makes a mark for noise of a shape (C, h, w)."""


def shares_as_good(mark: Mark, noise: Tensor, keys: Sequence[int]) -> Tensor:
    """For each noise, the share of keys that agree with it as well as its own does, that included: (B,)."""
    others = [key for key in range(FIRST_OTHER, FIRST_OTHER + OTHERS + 1) if key not in keys][:OTHERS]
    own, agreement = mark.agreement(noise, keys).diagonal(), mark.agreement(noise, others)
    return (1 + (agreement >= own).sum(0)) / (1 + len(others))
