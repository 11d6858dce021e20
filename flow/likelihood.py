"""The likelihood of data under a flow, by the instantaneous change of variables.

Chen et al. 2018 (arXiv:1806.07366), theorem 1: along the flow d log p(x(σ)) / dσ = -div v, so that

    log p(data) = log p(x(1)) + ∫₀¹ div v(x(σ), σ) dσ,    div v = tr ∂v/∂x

and x(1) is normal with the prior's deviation. The trace takes one derivative for each dimension, or is
estimated as eᵀ (∂v/∂x) e over random signs e, which is right in the mean (FFJORD, arXiv:1810.01367).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import FlowError
from .path import Path, path_of
from .precision import wide
from .show import shown
from .solvers.base import Velocity, last, prepare
from .solvers.table import started

Trace = Literal["exact", "hutchinson"]


@dataclass(frozen=True, repr=False)
class Likelihood:
    """The density of data under a flow."""

    log_prob: Tensor
    """(B,), in nats; of the state at `sigmas[0]`."""
    noise: Tensor
    """(B, *S), the state at `sigmas[-1]`, that the data come from."""

    def __repr__(self) -> str:
        return shown(self)

    @property
    def bits_per_dim(self) -> Tensor:
        """-log₂ p over the number of dimensions, (B,)."""
        return -self.log_prob / (self.noise[0].numel() * math.log(2))


def log_likelihood(
    velocity: Velocity,
    data: Tensor,
    sigmas: Tensor,
    *,
    path: str | Path = "rectified",
    trace: Trace = "exact",
    generator: torch.Generator | None = None,
    solver: str = "rk4",
    **options: Any,
) -> Likelihood:
    """Follow data up to noise and add up what the flow does to volume on the way.

    As exact as the solver: the logarithm is integrated beside x, to the same order. With gradients enabled
    the result has them, for training by maximum likelihood.

    Args:
        velocity: of the flow, differentiable in x, each sample by itself.
        data: (B, *S).
        sigmas: rising to 1, (steps + 1,). Begin above 0 where the path's velocity is infinite at 0.
        path: for the deviation of the prior at σ = 1.
        trace: exact takes one backward pass for each dimension and evaluation; hutchinson one for each
            evaluation, with the same random signs throughout, as the solver needs a function.
        generator: draws the signs of hutchinson.
        solver: a name in SOLVERS without a companion and without noise.
        options: of the solver.

    Raises:
        FlowError: sigmas that do not rise to 1, an unknown trace, a generator that is missing or has no use;
            and as in `solve`.
    """
    x, table = prepare(data, sigmas)
    if not table[0] < table[-1] == 1:
        raise FlowError(f"sigmas must rise to 1, got {float(table[0]):g} to {float(table[-1]):g}")
    if trace not in ("exact", "hutchinson"):
        raise FlowError(f"trace must be exact or hutchinson, got {trace!r}")
    if (generator is None) == (trace == "hutchinson"):
        raise FlowError("trace 'hutchinson' needs a generator to draw signs from, and only that does")
    signs = None
    if generator is not None:
        drawn = torch.randint(0, 2, x.shape, generator=generator, device=generator.device)
        signs = (2 * drawn - 1).to(x)

    def both(state: Tensor, sigma: Tensor) -> Tensor:
        """The velocity of x and, as one dimension more, of the integral: (B, D + 1)."""
        v, divergence = with_divergence(velocity, state[:, :-1].reshape(x.shape), sigma, signs)
        return torch.cat([v.flatten(1), divergence[:, None]], 1)

    start = torch.cat([x.flatten(1), torch.zeros_like(x.flatten(1)[:, :1])], 1)
    end = last(started(both, start, table, solver, options)).x
    noise, grown = end[:, :-1], end[:, -1]
    std = path_of(path).ends[1].noise.to(noise)
    prior = -(noise / std).square().sum(1) / 2 - noise.shape[1] * (std.log() + math.log(2 * math.pi) / 2)
    return Likelihood(prior + grown, noise.reshape(x.shape))


def with_divergence(
    velocity: Velocity, x: Tensor, sigma: Tensor, signs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """v(x, σ), (B, *S), and its divergence, (B,): exact, or estimated with `signs` (B, *S)."""
    keeps = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        v = wide(velocity(x, sigma))
        if not v.requires_grad:
            raise FlowError("the velocity has no gradient in x: it must not run under no_grad")

        def pulled(weighted: Tensor) -> Tensor:
            return torch.autograd.grad(
                weighted.sum(), x, create_graph=keeps, retain_graph=True, materialize_grads=True
            )[0].flatten(1)

        if signs is not None:
            divergence = (pulled(v * signs) * signs.flatten(1)).sum(1)
        else:
            flat = v.flatten(1)
            divergence = sum(pulled(flat[:, one])[:, one] for one in range(flat.shape[1]))
            assert isinstance(divergence, Tensor)
    return (v, divergence) if keeps else (v.detach(), divergence.detach())
