"""Guidance: velocities in, a velocity out.

`guide` is the formula (Ho & Salimans 2022, arXiv:2207.12598). `guided` makes of two velocities the one that a
solver follows, evaluating only what it needs. The variants of the literature are of two kinds, and compose:

    combine    (cond, uncond, scale, x, sigma) → velocity    `plain`, `cfg_zero`, `apg`
    adjust     (velocity, cond, x, sigma) → velocity         `rescale`, `threshold`, `skip_layer`, any number

Both kinds work on what guidance does. Where it does nothing, at scale 1 and outside the interval, neither is
called and the conditional velocity is followed as it is.

Guidance is what makes a generation hard to invert. Write D for the denoised state and look along a direction
that the prompt decides. Without the prompt a path may go on either way, so that D_u' there is 1 or more; with
it the way is decided, and D_c' is near 0. The guided slope is then

    D' = D_c' + (s - 1) (D_c' - D_u'),    at s = 4.5 about -3.5 D_u'

The flow shrinks an error as σ^(1 - D'), and an Euler step multiplies it by ρ + (1 - ρ) D', ρ = σ' / σ, and
folds below zero. On the embedded model, along the error that grows most on the way back (three prompts, σ
from 0.2 to 0.97), D_c' is 0 to 0.6, D_u' 0.7 to 3.9 and D' -0.5 to -14: what rounding leaves at the data,
1e-7, is multiplied up to a million times. Below σ = 0.7 there is little to gain for it: |D_c - D_u|, 38 to 88
at σ = 1, is 3 there, as the path is decided. So guide in an `interval` of (0.7, 1), and there with the `norm`
of `apg(1, norm)`: a difference of fixed length has no slope along itself.

Both reference implementations run the two halves as one batch, one [cond, uncond], the other [uncond,
cond]; the order has no effect, and `together` is where a caller may do so.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .errors import FlowError
from .path import per_sample
from .precision import wide
from .solvers.base import Velocity

Combine = Callable[[Tensor, Tensor, float, Tensor, Tensor], Tensor]
"""(cond, uncond, guidance_scale, x, sigma) to a velocity, all (B, *S) but the scale and sigma (B,)."""
Adjust = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(velocity, cond, x, sigma) to a velocity, all (B, *S) but sigma (B,)."""


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


def plain(cond: Tensor, uncond: Tensor, guidance_scale: float, x: Tensor, sigma: Tensor) -> Tensor:
    """`guide`, as a `Combine`."""
    return guide(cond, uncond, guidance_scale)


def guided(
    cond: Velocity,
    uncond: Velocity,
    guidance_scale: float,
    *,
    combine: Combine = plain,
    adjust: Sequence[Adjust] = (),
    interval: tuple[float, float] = (0.0, 1.0),
    together: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Velocity:
    """The velocity of a guided flow, for solvers. Where it is not guided it costs one evaluation, not two.

    Args:
        cond: velocity with the prompt.
        uncond: velocity with the negative prompt.
        guidance_scale: s of `guide`; at 1 only `cond` is evaluated, at every sigma.
        combine: how the two become one.
        adjust: what is done to the result, in this order; nothing at scale 1 and outside the interval, where
            there is no guidance to correct.
        interval: guide where low ≤ σ ≤ high and follow `cond` elsewhere (arXiv:2404.07724, eq. 6).
        together: evaluates both at once, as (cond, uncond), where both are needed.

    Raises:
        FlowError: an interval that is empty or leaves [0, 1].
    """
    low, high = interval
    if not 0 <= low < high <= 1:
        raise FlowError(f"interval must be (low, high) within [0, 1], got {interval}")

    everywhere = (low, high) == (0, 1)  # then no level is looked at, which on a GPU is to wait for it

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        inside = (sigma >= low) & (sigma <= high)
        if guidance_scale == 1 or not (everywhere or inside.any()):
            return cond(x, sigma)
        v_cond, v_uncond = together(x, sigma) if together else (cond(x, sigma), uncond(x, sigma))
        v_cond, v_uncond = wide(v_cond), wide(v_uncond)
        v = combine(v_cond, v_uncond, guidance_scale, x, sigma)
        for change in adjust:
            v = change(v, v_cond, x, sigma)
        return v if everywhere else torch.where(per_sample(inside.float(), v) > 0, v, v_cond)

    return velocity


def rescale(amount: float = 0.7) -> Adjust:
    """Bring the guided velocity's spread back toward the conditional one's (arXiv:2305.08891, eq. 15, 16).

        v ← φ · v · std(v_cond) / std(v) + (1 - φ) · v        std over a sample

    Args:
        amount: φ, in [0, 1].

    Raises:
        FlowError: an amount out of range.
    """
    if not 0 <= amount <= 1:
        raise FlowError(f"rescale must lie in [0, 1], got {amount}")

    def adjust(v: Tensor, cond: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        ratio = cond.flatten(1).std(1) / v.flatten(1).std(1)
        return v * (amount * per_sample(ratio, v) + 1 - amount)

    return adjust


def threshold(percentile: float, bound: float) -> Adjust:
    """Dynamic thresholding: squeeze denoised states that overshoot (Imagen, arXiv:2205.11487, section 2.3).

        D ← clip(D, -s, s) · bound / s,    s = max(bound, the percentile of |D| over a sample),    D = x - σ v

    A remedy for the overshoot that large scales cause: in `guided` it takes part only where guidance does.

    Args:
        percentile: in (0, 1]; Imagen's is 0.995.
        bound: what |D| should not exceed: 1 for images, for latents a few times their deviation.

    Raises:
        FlowError: a percentile out of range, or a bound that is not positive.
    """
    if not (0 < percentile <= 1 and bound > 0):
        raise FlowError(f"percentile must be in (0, 1] and bound positive, got {percentile} and {bound}")

    def adjust(v: Tensor, cond: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        level = per_sample(sigma, v)
        denoised = x - level * v
        # kthvalue, as quantile refuses more than 2²⁴ values
        flat = denoised.abs().flatten(1)
        limit = flat.kthvalue(max(1, round(percentile * flat.shape[1])), dim=1).values.clamp_min(bound)
        limit = per_sample(limit, v)
        squeezed = denoised.clamp(-limit, limit) * (bound / limit)
        return torch.where(level > 0, (x - squeezed) / level.clamp_min(torch.finfo(v.dtype).tiny), v)

    return adjust


def cfg_zero(cond: Tensor, uncond: Tensor, guidance_scale: float, x: Tensor, sigma: Tensor) -> Tensor:
    """CFG-Zero*: scale the unconditional velocity to fit the conditional one (arXiv:2503.18886, eq. 10, 14).

        v = s* · v_uncond + scale · (v_cond - s* · v_uncond),    s* = ⟨v_cond, v_uncond⟩ / ‖v_uncond‖²

    Its other half, a velocity of zero in the first steps, is `zero_start`.
    """
    fit = (cond * uncond).flatten(1).sum(1) / uncond.square().flatten(1).sum(1).clamp_min(1e-8)
    return guide(cond, uncond * per_sample(fit, uncond), guidance_scale)


def zero_start(velocity: Velocity, above: float) -> Velocity:
    """Stand still while σ > `above`, without an evaluation: CFG-Zero*'s zero-init (arXiv:2503.18886, 4.2).

    The paper does so for the first 4 % of the steps: `above` = sigmas[1] of 28 covers one.
    """

    def stilled(x: Tensor, sigma: Tensor) -> Tensor:
        moving = sigma <= above
        if not moving.any():
            return torch.zeros_like(x)
        v = velocity(x, sigma)
        return v * per_sample(moving, v)

    return stilled


def apg(parallel: float = 0.0, norm: float | None = None) -> Combine:
    """Adaptive projected guidance (arXiv:2410.02416, algorithm 1), without its momentum.

        D = D_cond + (scale - 1) · (Δ⊥ + η · Δ∥),    Δ = D_cond - D_uncond, its norm at most r

    ∥ and ⊥ are along D_cond and across. The momentum is left out because it makes the velocity depend on
    the calls before, and a solver may call in any order and invert.

    Args:
        parallel: η; 0 drops what only saturates, 1 is plain guidance.
        norm: r, of a sample; None does not limit it.

    Raises:
        FlowError: a norm that is not positive.
    """
    if norm is not None and not norm > 0:
        raise FlowError(f"norm must be positive, got {norm}")

    def combine(cond: Tensor, uncond: Tensor, guidance_scale: float, x: Tensor, sigma: Tensor) -> Tensor:
        level = per_sample(sigma, cond)
        difference = cond - uncond  # Δ = -σ · difference
        if norm is not None:
            length = (level * difference).flatten(1).norm(dim=1).clamp_min(1e-12)
            difference = difference * per_sample((norm / length).clamp(max=1), cond)
        denoised = x - level * cond
        along = (difference * denoised).flatten(1).sum(1) / denoised.square().flatten(1).sum(1).clamp_min(
            1e-12
        )
        along = per_sample(along, cond) * denoised
        return cond + (guidance_scale - 1) * (difference - along + parallel * along)

    return combine
