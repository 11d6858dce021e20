"""Classifier-free guidance: velocities in, a velocity out (Ho & Salimans 2022, arXiv:2207.12598)."""

from torch import Tensor

from .errors import FlowError
from .precision import wide


def guide(cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
    """Move the velocity away from the unconditional one.

        v = v_uncond + s · (v_cond - v_uncond)

    The same in velocities as in denoised states, since x - σ v is affine in v; so the two reference
    implementations, one of which does either, agree. Computed in float32 or better, as large scales multiply
    the rounding of the difference.

    Args:
        cond: velocity with the prompt, (B, *S).
        uncond: velocity with the negative prompt, (B, *S).
        guidance_scale: s; 1 returns `cond` itself, 0 the unconditional velocity.

    Returns:
        (B, *S), float32 or better.

    Raises:
        FlowError: the shapes differ.
    """
    if cond.shape != uncond.shape:
        raise FlowError(
            f"cond and uncond must have one shape, got {tuple(cond.shape)} and {tuple(uncond.shape)}"
        )
    cond, uncond = wide(cond), wide(uncond)
    return cond if guidance_scale == 1 else uncond + guidance_scale * (cond - uncond)
