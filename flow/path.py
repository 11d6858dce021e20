"""Paths between data and noise, x = a · data + n · noise with a and n functions of σ, as values.

    x = a(σ) · data + n(σ) · noise,    v = dx/dσ = a'(σ) · data + n'(σ) · noise

    rectified          a = 1 - σ           n = σ                        Liu et al. 2022, arXiv:2209.03003
      with σ_min                           n = σ + σ_min (1 - σ)        Lipman, arXiv:2210.02747, eq. 20
    vp_cosine          a = cos(π σ / 2)    n = sin(π σ / 2)             Nichol & Dhariwal, arXiv:2102.09672
    vp_linear          a = exp(-T / 2)     n = √(1 - a²)                Song et al., arXiv:2011.13456, eq. 33
                       T = σ² (β_max - β_min) / 2 + σ β_min
    vp_linear_alpha    a = 1 - σ           n = √(1 - a²)                flow_matching's LinearVPScheduler
    ve                 a = 1               n = σ_min (σ_max / σ_min)^σ  Song et al., eq. 30

SD3.5 is trained on the first (arXiv:2403.03206, eq. 13, with t for σ). σ is where on the path one is, 0 near
data and 1 near noise on each of them; only on the first is it also the share of noise.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import FlowError


class Scales(NamedTuple):
    """What multiplies data and noise at a place on a path, and how fast that changes with σ."""

    data: Tensor
    """a."""
    noise: Tensor
    """n."""
    data_rate: Tensor
    """a'."""
    noise_rate: Tensor
    """n'; infinite where the path begins with a vertical slope, as vp_linear does at 0."""


@dataclass(frozen=True)
class Path(ABC):
    """A path between data and noise."""

    @abstractmethod
    def scales(self, sigma: Tensor) -> Scales:
        """a, n and their derivatives at each of the levels `sigma`, floating and of any shape."""

    def at(self, sigma: Tensor | float, like: Tensor) -> Scales:
        """The scales as they multiply `like` (B, *S): each (B, 1, ..., 1) or (), computed in float32 or more.

        Args:
            sigma: levels in [0, 1], (B,), () or a number.
            like: whose dtype, device and dimensions they get.
        """
        return Scales(*(per_sample(scale, like) for scale in self.scales(levels(sigma, like))))

    def interpolate(self, data: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
        """The state on the path, x = a · data + n · noise, (B, *S).

        Args:
            data: (B, *S).
            noise: (B, *S).
            sigma: levels in [0, 1], (B,), () or a number.
        """
        scales = self.at(sigma, data)
        return scales.data * data + scales.noise * noise

    def target(self, data: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
        """The velocity that a model is taught there, a' · data + n' · noise, (B, *S)."""
        scales = self.at(sigma, data)
        return scales.data_rate * data + scales.noise_rate * noise

    @property
    def ends(self) -> tuple[Scales, Scales]:
        """The boundary conditions: the scales at σ = 0, where x should be data, and at 1, noise; float64."""
        both = self.scales(torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu"))
        return Scales(*(scale[0] for scale in both)), Scales(*(scale[1] for scale in both))

    def prior(self, noise: Tensor) -> Tensor:
        """Where a generation begins: standard normal noise as it lies at σ = 1, n(1) · noise, (B, *S).

        Only `ve` needs it, whose noise there has a deviation of σ_max. What is left of the data at σ = 1,
        a(1) · data, is neglected: nothing on the paths with a(1) = 0, 0.7 % on `vp_linear`, 1 of 50 on `ve`.
        """
        return self.at(1.0, noise).noise * noise

    def diffusion(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The diffusion with this path's marginals: f and g² (Song et al., eq. 13; arXiv:2107.00630).

            f = a' / a,    g² = 2 n n' - 2 f n²;    its probability flow is v = f x - g²/2 · score

        Infinite where a = 0. `convert` and `probability_flow` have the same flow without that division.
        """
        a, n, a_rate, n_rate = self.scales(sigma)
        drift = a_rate / a
        return drift, 2 * n * n_rate - 2 * drift * n.square()

    def straightened(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Where the rectified path has the same state: its level n / (a + n), and the scale 1 / (a + n) of x.

        All these paths are one path in other units (arXiv:2206.00364, section 3): a model of one can follow
        another's by scaling what it sees.
        """
        scales = self.scales(sigma)
        whole = scales.data + scales.noise
        return scales.noise / whole, 1 / whole


@dataclass(frozen=True)
class Rectified(Path):
    """The straight path. With `sigma_min` a little noise is left at the data's end, as in Lipman et al."""

    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < 1:
            raise FlowError(f"sigma_min must lie in [0, 1), got {self.sigma_min}")

    def scales(self, sigma: Tensor) -> Scales:
        """See the head of this file."""
        one = torch.ones_like(sigma)
        noise = sigma + self.sigma_min * (1 - sigma) if self.sigma_min else sigma
        return Scales(1 - sigma, noise, -one, (1 - self.sigma_min) * one)


@dataclass(frozen=True)
class VPCosine(Path):
    """The quarter circle: a² + n² = 1. `offset` is s of Nichol & Dhariwal (eq. 17), whose value is 0.008."""

    offset: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.offset < math.inf:
            raise FlowError(f"offset must be at least 0 and finite, got {self.offset}")

    def scales(self, sigma: Tensor) -> Scales:
        """See the head of this file."""
        speed = math.pi / 2 / (1 + self.offset)
        # Both as sines, so that a is 0 at σ = 1 and n is 0 at σ = 0 to the last bit.
        data, rest = torch.sin(speed * (1 - sigma)), torch.cos(speed * (1 - sigma))
        if not self.offset:
            return Scales(data, torch.sin(speed * sigma), -speed * rest, speed * data)
        start = math.cos(self.offset * speed)
        data, data_rate = data / start, -speed * rest / start
        noise = (1 - data.square()).clamp_min(0).sqrt()
        return Scales(data, noise, data_rate, -data * data_rate / noise)


@dataclass(frozen=True)
class VPLinear(Path):
    """DDPM's path in continuous time: a variance rate β that rises linearly. Singular at σ = 0, n ~ √σ."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max < math.inf:
            raise FlowError(f"0 < beta_min < beta_max is needed, got {self.beta_min} and {self.beta_max}")

    def scales(self, sigma: Tensor) -> Scales:
        """See the head of this file."""
        total = sigma.square() * (self.beta_max - self.beta_min) / 2 + sigma * self.beta_min
        rate = sigma * (self.beta_max - self.beta_min) + self.beta_min
        data, noise = torch.exp(-total / 2), (-torch.expm1(-total)).sqrt()
        return Scales(data, noise, -rate / 2 * data, rate / 2 * data.square() / noise)


@dataclass(frozen=True)
class VPLinearAlpha(Path):
    """Data fade linearly and the variance is kept. Singular at σ = 0, n ~ √σ."""

    def scales(self, sigma: Tensor) -> Scales:
        """See the head of this file."""
        data, noise = 1 - sigma, (sigma * (2 - sigma)).sqrt()
        return Scales(data, noise, -torch.ones_like(sigma), data / noise)


@dataclass(frozen=True)
class VE(Path):
    """Data stay and noise grows geometrically over them. A generation begins at `prior(noise)`."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise FlowError(f"0 < sigma_min < sigma_max is needed, got {self.sigma_min} and {self.sigma_max}")

    def scales(self, sigma: Tensor) -> Scales:
        """See the head of this file."""
        growth = math.log(self.sigma_max / self.sigma_min)
        noise = self.sigma_min * torch.exp(growth * sigma)
        return Scales(torch.ones_like(sigma), noise, torch.zeros_like(sigma), growth * noise)


PATHS: Mapping[str, Path] = MappingProxyType(
    {
        "rectified": Rectified(),
        "vp_cosine": VPCosine(),
        "vp_linear": VPLinear(),
        "vp_linear_alpha": VPLinearAlpha(),
        "ve": VE(),
    }
)
"""The paths by name, with the numbers that their papers have. For other numbers make one: Rectified(1e-4)."""


def path_of(path: str | Path) -> Path:
    """The path of that name, or the path that was given.

    Raises:
        FlowError: there is none of that name; the message lists those that are.
    """
    if isinstance(path, Path):
        return path
    if path not in PATHS:
        raise FlowError(f"path must be one of {', '.join(PATHS)}, or a Path; got {path!r}")
    return PATHS[path]


def interpolate(data: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """Mix data and noise at a noise level of the rectified path: (1 - σ) · data + σ · noise, (B, *S).

    This is also where image-to-image starts: the picture's latents with noise at the first sigma kept.

    Args:
        data: (B, *S).
        noise: (B, *S).
        sigma: noise levels in [0, 1], (B,), () or a number.
    """
    return PATHS["rectified"].interpolate(data, noise, sigma)


def target(data: Tensor, noise: Tensor) -> Tensor:
    """The velocity of the rectified path: noise - data, the same at every sigma, (B, *S)."""
    return noise - data


def denoised(x: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """The data that the path through `x` comes from if it is straight: x - σ · v, (B, *S).

    Args:
        x: the state at `sigma`, (B, *S).
        velocity: v(x, sigma), (B, *S).
        sigma: noise levels in [0, 1], (B,), () or a number.
    """
    return x - per_sample(sigma, x) * velocity


def levels(sigma: Tensor | float, like: Tensor) -> Tensor:
    """`sigma` as a tensor on the device of `like`, in the wider of the two dtypes, float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if not isinstance(sigma, Tensor):
        return torch.tensor(sigma, dtype=dtype, device=like.device)
    sigma = sigma.to(torch.promote_types(sigma.dtype, dtype))
    return sigma if sigma.device == like.device else sigma.to(like.device)


def per_sample(values: Tensor | float, like: Tensor) -> Tensor:
    """View (B,) as (B, 1, ..., 1), to multiply `like` (B, *S), in its dtype; () and numbers become ()."""
    if not isinstance(values, Tensor):
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    values = values.to(like)
    return values if values.ndim == 0 else values.reshape(-1, *(1,) * (like.ndim - 1))


def rms(x: Tensor) -> Tensor:
    """The root mean square of each sample of (B, *S): (B,)."""
    return x.reshape(len(x), -1).square().mean(1).sqrt()
