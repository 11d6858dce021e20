"""Flows whose velocity is known in closed form, shared by the tests of solvers, guidance and inverses."""

import math
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flow import PATHS, Path, VPCosine

STORED = {
    "ot": PATHS["rectified"],
    "vp_linear_beta": PATHS["vp_linear"],
    "vp_cosine": PATHS["vp_cosine"],
    "vp_cosine_iddpm": VPCosine(offset=0.008),
    "vp_linear_alpha": PATHS["vp_linear_alpha"],
    "ve": PATHS["ve"],
}
"""Paths by their names in the reference data."""


@pytest.fixture(scope="session")
def path_goldens(shared_reference) -> dict[str, Tensor]:
    """What the peers compute on each path."""
    return load_file(shared_reference / "training" / "paths.safetensors")


@pytest.fixture(params=STORED.items(), ids=STORED)
def stored(request) -> tuple[str, Path]:
    """Each path of the reference data, with its name there."""
    return request.param


@dataclass(frozen=True)
class Gaussian:
    """Data ~ N(mean, std²): velocity and flow are known (shared/reference/parity, samplers_closed_form)."""

    mean: float = 0.3
    std: float = 0.5

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.reshape(-1, *(1,) * (x.ndim - 1)).to(x)
        keep = 1 - level
        variance = keep**2 * self.std**2 + level**2
        return (level - keep * self.std**2) / variance * (x - keep * self.mean) - self.mean

    def moments(self, sigma: float) -> tuple[float, float]:
        return (1 - sigma) * self.mean, math.sqrt((1 - sigma) ** 2 * self.std**2 + sigma**2)

    def exact(self, x: Tensor, start: float, end: float) -> Tensor:
        (mean, std), (mean_end, std_end) = self.moments(start), self.moments(end)
        return mean_end + std_end / std * (x - mean)


@dataclass(frozen=True)
class Mixture:
    """Data from a mixture of normal distributions around `means` (K, D): a nonlinear flow without training.

    v = E[noise - data | x] is the mean of the components' Gaussian velocities, weighted by how likely each
    component is given x. `dtype` rounds the answer, as a network computed in it would.
    """

    means: Tensor
    std: float
    dtype: torch.dtype | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        means = self.means.to(x)
        if self.dtype is not None:
            x, means, sigma = x.to(self.dtype), means.to(self.dtype), sigma.to(self.dtype)
        level = sigma.reshape(-1, 1, 1).to(x)
        keep, flat = 1 - level, x.flatten(1)[:, None]
        variance = keep**2 * self.std**2 + level**2
        away = flat - keep * means  # (B, K, D)
        likely = torch.softmax(-(away**2).sum(-1) / (2 * variance[:, 0]), dim=-1)[..., None]
        each = (level - keep * self.std**2) / variance * away - means
        return (likely * each).sum(1).reshape(x.shape)


@pytest.fixture(scope="session")
def gaussian() -> Gaussian:
    return Gaussian()


@pytest.fixture(scope="session")
def mixture() -> type[Mixture]:
    return Mixture


@pytest.fixture(scope="session")
def toy():
    """toy(guidance, dtype, spread) is guided, on (B, 4, 4, 4): 8 groups of 8, one of each against all.

    The members of a group lie `spread` apart, so that guidance is decided late, at low σ, and the last steps
    contract: what makes inverting a guided generation hard. At spread 0.03 and guidance 7 some steps fold.
    """
    generator = torch.Generator().manual_seed(5)
    groups = 0.5 * torch.randn(8, 1, 64, generator=generator, dtype=torch.float64)
    offsets = torch.randn(8, 8, 64, generator=generator, dtype=torch.float64)

    def build(guidance: float = 4.5, dtype: torch.dtype | None = None, spread: float = 0.05):
        means = groups + spread * offsets
        cond, uncond = Mixture(means[:, 0], 0.1, dtype), Mixture(means.flatten(0, 1), 0.1, dtype)

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            v_cond, v_uncond = cond(x, sigma).to(x), uncond(x, sigma).to(x)
            return v_uncond + guidance * (v_cond - v_uncond)

        return velocity

    return build


@pytest.fixture(scope="session")
def noise_for():
    """noise_for(batch, seed, dtype) is standard normal, (batch, 4, 4, 4)."""

    def draw(batch: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(batch, 4, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    return draw


@pytest.fixture(scope="session")
def counted():
    """counted(velocity) counts its calls in `.calls`, and keeps the sigmas in `.sigmas`."""

    class Counted:
        def __init__(self, velocity) -> None:
            self.velocity, self.sigmas = velocity, []

        @property
        def calls(self) -> int:
            return len(self.sigmas)

        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            self.sigmas.append(float(sigma[0]))
            return self.velocity(x, sigma)

    return Counted
