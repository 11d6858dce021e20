"""The training objective of a rectified flow, and the noise levels at which it is trained.

SD3 paper (arXiv:2403.03206), section 3. There is no weight in the loss: drawing σ from a density π is the
same as weighting a uniform draw by π (section 3.1, end), and the density is what the paper varies.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import FlowError
from .path import interpolate, target
from .schedule import shifted
from .solvers.base import Velocity

Density = Literal["logit_normal", "mode", "cosmap", "uniform"]


def cfm_loss(
    velocity: Velocity,
    data: Tensor,
    *,
    noise: Tensor | None = None,
    sigma: Tensor | None = None,
    generator: torch.Generator | None = None,
    schedule_shift: float = 1.0,
) -> Tensor:
    """Conditional flow matching: how far a velocity is from noise - data, in the mean square.

        E ‖v(x, σ) - (noise - data)‖²,    x = (1 - σ) · data + σ · noise        (eq. 14)

    The difference is taken in float32 or better, whatever the dtype of the model's answer.

    Args:
        velocity: called once, as velocity(x (B, *S), sigma (B,)).
        data: (B, *S).
        noise: (B, *S); None draws it from `generator`.
        sigma: (B,), noise levels in [0, 1]; None draws them with `sample_sigmas`, logit-normal.
        generator: on the device of `data`; needed where noise or sigma is not given. Sigma is drawn first.
        schedule_shift: for drawn sigmas.

    Returns:
        The mean over batch and all dimensions, a scalar with gradient.

    Raises:
        FlowError: something must be drawn and there is no generator, or shapes differ.
    """
    sigma = (
        sample_sigmas(len(data), _given(generator), schedule_shift=schedule_shift) if sigma is None else sigma
    )
    if noise is None:
        noise = torch.randn(data.shape, generator=_given(generator), dtype=data.dtype, device=data.device)
    if noise.shape != data.shape or sigma.shape != data.shape[:1]:
        raise FlowError(
            f"noise must be {tuple(data.shape)} and sigma {tuple(data.shape[:1])}, "
            f"got {tuple(noise.shape)} and {tuple(sigma.shape)}"
        )
    predicted = velocity(interpolate(data, noise, sigma), sigma)
    if predicted.shape != data.shape:
        raise FlowError(f"velocity must return {tuple(data.shape)}, got {tuple(predicted.shape)}")
    wide = torch.promote_types(predicted.dtype, torch.float32)
    return (predicted.to(wide) - target(data, noise).to(wide)).square().mean()


def _given(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise FlowError("cfm_loss draws from a torch.Generator: pass generator=, or both noise= and sigma=")
    return generator


def sample_sigmas(
    count: int,
    generator: torch.Generator,
    *,
    density: Density = "logit_normal",
    location: float = 0.0,
    scale: float = 1.0,
    schedule_shift: float = 1.0,
) -> Tensor:
    """Draw noise levels for training (SD3 paper, section 3.1 and figure 11).

        logit_normal:  σ = sigmoid(u), u ~ N(location, scale²)        (eq. 19)
        mode:          σ = 1 - u - scale · (cos²(πu/2) - 1 + u)       (eq. 20), u uniform
        cosmap:        σ = 1 - 1 / (tan(πu/2) + 1)                    (eq. 21)
        uniform:       σ = u

    Args:
        count: B, how many.
        generator: the sigmas are made on its device.
        density: one of the above. The paper's best is logit_normal with location 0 and scale 1.
        location: of the logit-normal density; a positive one draws more noise.
        scale: of logit_normal, positive; of mode, in [-1, 2 / (π - 2)], where the map is monotonic.
        schedule_shift: bends the levels as `sigmas` does (section 5.3.2), for larger images.

    Returns:
        float32, (count,), in [0, 1].

    Raises:
        FlowError: an unknown density, or a scale outside its range.
    """
    limits = {"logit_normal": (0.0, math.inf), "mode": (-1.0, 2 / (math.pi - 2))}
    if density not in get_args(Density):
        raise FlowError(f"density must be one of {', '.join(get_args(Density))}; got {density!r}")
    low, high = limits.get(density, (-math.inf, math.inf))
    if not low <= scale <= high:
        raise FlowError(f"scale of density {density} must be within [{low:g}, {high:g}], got {scale}")
    draw = torch.randn if density == "logit_normal" else torch.rand
    u = draw(count, generator=generator, device=generator.device)
    if density == "logit_normal":
        u = torch.sigmoid(location + scale * u)
    elif density == "mode":
        u = 1 - u - scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)
    elif density == "cosmap":
        u = 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
    return shifted(u, schedule_shift)
