"""The training objective of a flow, the noise levels at which it is trained, and what each of them weighs.

SD3 paper (arXiv:2403.03206), section 3. Drawing σ from a density π is the same as weighting a uniform draw by
π (section 3.1, end): the paper draws, and so does `density`. Others draw uniformly and multiply, by `weight`.
Never do the same thing by both.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .convert import checked_levels
from .coupling import Coupling, couple
from .errors import FlowError
from .path import Path, path_of, per_sample
from .precision import wide
from .schedule import LEVELS, shifted
from .solvers.base import Velocity

Density = Literal["logit_normal", "mode", "cosmap", "uniform"]
Weight = Literal["none", "sigma_sqrt", "cosmap", "min_snr"]
MIN_SNR = 5.0
"""γ of Hang et al. 2023 (arXiv:2303.09556)."""


def cfm_loss(
    velocity: Velocity,
    data: Tensor,
    *,
    path: str | Path = "rectified",
    noise: Tensor | None = None,
    sigma: Tensor | float | None = None,
    generator: torch.Generator | None = None,
    coupling: Coupling = "independent",
    density: Density = "logit_normal",
    schedule_shift: float = 1.0,
    weight: Weight = "none",
    precondition: bool = False,
) -> Tensor:
    """Conditional flow matching: how far a velocity is from that of the path, in the mean square.

        E w(σ) ‖v(x, σ) - (a' · data + n' · noise)‖²,    x = a · data + n · noise        (eq. 14, any path)

    The difference is taken in float32 or better, whatever the dtype of the model's answer.

    Args:
        velocity: called once, as velocity(x (B, *S), sigma (B,)).
        data: (B, *S).
        path: a name in PATHS, or a Path.
        noise: (B, *S); None draws it from `generator`. Reflow gives its own (`reflow`).
        sigma: levels in [0, 1], (B,) or one for all; None draws them with `sample_sigmas`. For the options of
            that, draw them before.
        generator: on the device of `data`; needed where noise or sigma is not given. Sigma is drawn first.
        coupling: which noise goes with which data; see `couple`. With given noise too.
        density: of drawn sigmas.
        schedule_shift: of drawn sigmas.
        weight: see `loss_weights`.
        precondition: compare data, x - σ v, in place of velocities; see `loss_weights`.

    Returns:
        The mean over batch and all dimensions, a scalar with gradient.

    Raises:
        FlowError: something must be drawn and there is no generator, shapes differ, an unknown name, or a
            weight that is infinite at one of the levels.
    """
    path = path_of(path)
    if sigma is None:
        drawn = sample_sigmas(len(data), _given(generator), density=density, schedule_shift=schedule_shift)
        sigma = drawn.to(data.device)
    else:
        sigma = checked_levels(sigma, data)
        sigma = sigma.expand(len(data)) if sigma.ndim == 0 else sigma
    if noise is None:
        noise = torch.randn(data.shape, generator=_given(generator), dtype=data.dtype, device=data.device)
    if noise.shape != data.shape:
        raise FlowError(f"noise must be shaped as data, {tuple(data.shape)}, got {tuple(noise.shape)}")
    noise = couple(data, noise, coupling)
    predicted = velocity(path.interpolate(data, noise, sigma), sigma)
    if predicted.shape != data.shape:
        raise FlowError(f"velocity must return {tuple(data.shape)}, got {tuple(predicted.shape)}")
    predicted = wide(predicted)
    errors = (predicted - path.target(data.to(predicted), noise.to(predicted), sigma)).square()
    weights = loss_weights(sigma, weight, path=path, precondition=precondition)
    return (errors if weights is None else per_sample(weights, errors) * errors).mean()


def _given(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise FlowError("cfm_loss draws from a torch.Generator: pass generator=, or both noise= and sigma=")
    return generator


def loss_weights(
    sigma: Tensor, weight: Weight = "none", *, path: str | Path = "rectified", precondition: bool = False
) -> Tensor | None:
    """What the squared error of the velocity is multiplied by at each level.

        none         1
        sigma_sqrt   1 / σ²                                  as diffusers' training scripts name it
        cosmap       2 / (π (1 - 2 σ + 2 σ²))                (eq. 21, as a weight of uniform draws)
        min_snr      min(a² / n², γ) · (n / W)²              γ = 5 (arXiv:2303.09556), W = a n' - a' n

    min-SNR is defined as min(SNR, γ) on the error of data. That error is n / W times the velocity's, σ times
    on the straight path, which gives the form above. `precondition` multiplies the others by the same
    (n / W)²: diffusers' scripts and kohya's compare x - σ v with data unless told otherwise, so that low
    noise hardly counts, and their sigma_sqrt is then the plain loss of the velocity.

    Args:
        sigma: (B,).
        weight: one of the above.
        path: where SNR is taken; sigma_sqrt and cosmap are made for the rectified one.
        precondition: see above. min_snr has it in itself and refuses it.

    Returns:
        (B,), or None where every weight is 1.

    Raises:
        FlowError: an unknown weight, or one that is infinite at one of the levels.
    """
    if weight not in get_args(Weight):
        raise FlowError(f"weight must be one of {', '.join(get_args(Weight))}; got {weight!r}")
    if weight == "min_snr" and precondition:
        raise FlowError("min_snr weighs the error of data already: leave precondition out")
    if weight == "none" and not precondition:
        return None
    a, n, a_rate, n_rate = path_of(path).scales(wide(sigma))
    data_error = (n / (a * n_rate - a_rate * n)).square()
    if weight == "min_snr":
        weights = torch.minimum(a.square(), MIN_SNR * n.square()) / n.square() * data_error
    elif weight == "cosmap":
        weights = 2 / (math.pi * (1 - 2 * sigma + 2 * sigma.square()))
    else:
        weights = torch.ones_like(sigma) if weight == "none" else sigma**-2.0
    weights = weights * data_error if precondition else weights
    if not weights.isfinite().all():
        raise FlowError(f"weight {weight} has no value at sigma {float(sigma[~weights.isfinite()][0]):g}")
    return weights


def sample_sigmas(
    count: int,
    generator: torch.Generator,
    *,
    density: Density = "logit_normal",
    location: float = 0.0,
    scale: float = 1.0,
    schedule_shift: float = 1.0,
    preset: Literal["paper", "diffusers"] = "paper",
) -> Tensor:
    """Draw noise levels for training (SD3 paper, section 3.1 and figure 11).

        logit_normal:  σ = sigmoid(u), u ~ N(location, scale²)        (eq. 19)
        mode:          σ = 1 - u - scale · (cos²(πu/2) - 1 + u)       (eq. 20), u uniform
        cosmap:        σ = 1 - 1 / (tan(πu/2) + 1)                    (eq. 21)
        uniform:       σ = u

    diffusers' training scripts take such a draw for a place in a falling table of 1000 levels, σ = (1000 -
    ⌊1000 u⌋) / 1000. So the density is mirrored, a positive location draws *less* noise, and σ is at least
    1/1000.

    Args:
        count: B, how many.
        generator: the sigmas are made on its device.
        density: one of the above. The paper's best is logit_normal with location 0 and scale 1.
        location: of the logit-normal density; a positive one draws more noise.
        scale: of logit_normal, positive; of mode, in [-1, 2 / (π - 2)], where the map is monotonic.
        schedule_shift: bends the levels as `sigmas` does (section 5.3.2), for larger images.
        preset: whose reading of the draw.

    Returns:
        float32, (count,), in [0, 1].

    Raises:
        FlowError: an unknown density or preset, a scale outside its range, or cosmap asked of diffusers,
            which draws uniformly and weighs.
    """
    limits = {"logit_normal": (0.0, math.inf), "mode": (-1.0, 2 / (math.pi - 2))}
    if density not in get_args(Density):
        raise FlowError(f"density must be one of {', '.join(get_args(Density))}; got {density!r}")
    if preset not in ("paper", "diffusers"):
        raise FlowError(f"preset must be paper or diffusers, got {preset!r}")
    if preset == "diffusers" and density == "cosmap":
        raise FlowError("diffusers does not draw cosmap: it draws uniformly, with weight='cosmap'")
    low, high = limits.get(density, (-math.inf, math.inf))
    if not low <= scale <= high:
        raise FlowError(f"scale of density {density} must be within [{low:g}, {high:g}], got {scale}")
    draw = torch.randn if density == "logit_normal" else torch.rand
    u = draw(count, generator=generator, device=generator.device, dtype=torch.float32)
    if density == "logit_normal":
        u = torch.sigmoid(location + scale * u)
    elif density == "mode":
        u = 1 - u - scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)
    elif density == "cosmap":
        u = 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
    if preset == "diffusers":
        u = (LEVELS - (LEVELS * u).floor().clamp_max(LEVELS - 1)) / LEVELS
    return shifted(u, schedule_shift)
