"""The straight path between data and noise, and what can be read off it.

    x = (1 - σ) · data + σ · noise,    v = dx/dσ = noise - data

Rectified flow: Liu et al. 2022 (arXiv:2209.03003); SD3 paper (arXiv:2403.03206), eq. 13, with t for σ.
"""

from torch import Tensor


def interpolate(data: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Mix data and noise at a noise level.

        x = (1 - σ) · data + σ · noise

    This is also where image-to-image starts: the picture's latents with noise at the first sigma kept.

    Args:
        data: (B, *S).
        noise: (B, *S).
        sigma: noise levels in [0, 1], (B,) or ().
    """
    level = per_sample(sigma, data)
    return (1 - level) * data + level * noise


def target(data: Tensor, noise: Tensor) -> Tensor:
    """The velocity that a model is taught: noise - data, the same at every sigma, (B, *S)."""
    return noise - data


def denoised(x: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The data that the path through `x` comes from if it is straight: x - σ · v, (B, *S).

    Args:
        x: the state at `sigma`, (B, *S).
        velocity: v(x, sigma), (B, *S).
        sigma: noise levels in [0, 1], (B,) or ().
    """
    return x - per_sample(sigma, x) * velocity


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View (B,) as (B, 1, ..., 1), to multiply `like` (B, *S), in its dtype; () stays ()."""
    values = values.to(like)
    return values if values.ndim == 0 else values.reshape(-1, *(1,) * (like.ndim - 1))
