"""What a model may predict, and how one prediction is turned into another, on any path.

Every prediction is a sum of data and noise, p · data + q · noise:

    velocity    a' · data + n' · noise              score    -noise / n        (∇ log p of x given the data)
    noise, data                                     v        cos φ · noise - sin φ · data,    tan φ = n / a

v is that of Salimans & Ho (2022, arXiv:2202.00512, appendix D); where a² + n² = 1 it is their a · noise -
n · data. With x = a · data + n · noise that makes two equations for data and noise:

    data = (q x - n y) / (a q - n p),    noise = (a y - p x) / (a q - n p)        y = p · data + q · noise

The same holds of what a model has learned, since all are means given x, and x itself is known.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import FlowError
from .path import Path, Scales, levels, path_of, per_sample
from .solvers.base import Velocity

Prediction = Literal["velocity", "score", "noise", "data", "v"]


def convert(
    value: Tensor,
    x: Tensor,
    sigma: Tensor | float,
    *,
    source: Prediction = "velocity",
    target: Prediction = "score",
    path: str | Path = "rectified",
) -> Tensor:
    """Turn one kind of prediction into another.

    Args:
        value: the prediction at (`x`, `sigma`), (B, *S).
        x: the state, (B, *S).
        sigma: levels in [0, 1], (B,), () or a number.
        source: what `value` is.
        target: what is wanted.
        path: a name in PATHS, or a Path.

    Returns:
        (B, *S), in the wider dtype of `value` and `x`.

    Raises:
        FlowError: an unknown kind, levels out of range, shapes that differ; or an end of the path where
            `source` does not say what `target` is: the noise says nothing of the data where x is pure noise,
            data nothing of the noise where there is none, and the score of data without noise is infinite.
    """
    for name, kind in (("source", source), ("target", target)):
        if kind not in get_args(Prediction):
            raise FlowError(f"{name} must be one of {', '.join(get_args(Prediction))}; got {kind!r}")
    if value.shape != x.shape:
        raise FlowError(f"value must be shaped as x, {tuple(x.shape)}, got {tuple(value.shape)}")
    like = x.to(torch.promote_types(x.dtype, value.dtype))
    sigma = checked_levels(sigma, like)
    if source == target:
        return value.to(like)
    of_x, of_value = _weights(path_of(path).scales(sigma), source, target)
    if not (of_x.isfinite() & of_value.isfinite()).all():
        wrong = sigma.expand(of_x.shape)[~(of_x.isfinite() & of_value.isfinite())].flatten()[0]
        raise FlowError(
            f"at sigma {float(wrong):g} of this path the {source} does not say what the {target} is: x is "
            "all noise, or has none. Stop short of that end, or let the model predict v"
        )
    return per_sample(of_x, like) * like + per_sample(of_value, like) * value


def checked_levels(sigma: Tensor | float, like: Tensor) -> Tensor:
    """`sigma`, (B,) or (), for a batch `like` (B, *S); see `levels`.

    Raises:
        FlowError: another shape, or a level outside [0, 1].
    """
    sigma = levels(sigma, like)
    if sigma.ndim and sigma.shape != like.shape[:1]:
        raise FlowError(
            f"sigma must be ({len(like)},), one for each sample, or one number; got {tuple(sigma.shape)}"
        )
    if not ((sigma >= 0) & (sigma <= 1)).all():
        raise FlowError(
            f"sigma must lie in [0, 1], got {float(sigma.min()):g} to {float(sigma.max()):g}; "
            "a timestep of 0 to 1000 is 1000 times as much"
        )
    return sigma


def _weights(scales: Scales, source: Prediction, target: Prediction) -> tuple[Tensor, Tensor]:
    """The target as a sum of x and of the source: what multiplies either."""
    a, n = scales.data, scales.noise
    (p, q), (r, s) = _form(scales, source), _form(scales, target)
    if {source, target} == {"noise", "score"}:  # of which either gives the other without x
        return torch.zeros_like(a), torch.where(n > 0, s / q, math.inf)
    determinant = a * q - n * p
    return (r * q - s * p) / determinant, (s * a - r * n) / determinant


def _form(scales: Scales, kind: Prediction) -> tuple[Tensor, Tensor]:
    """What multiplies data and noise in a prediction."""
    a, n = scales.data, scales.noise
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    if kind == "velocity":
        return scales.data_rate, scales.noise_rate
    if kind == "v":
        length = torch.hypot(a, n)
        return -n / length, a / length
    return {"data": (one, zero), "noise": (zero, one), "score": (zero, -1 / n)}[kind]


def probability_flow(
    predict: Callable[[Tensor, Tensor], Tensor], source: Prediction, path: str | Path = "rectified"
) -> Velocity:
    """The velocity of the probability flow of a model that predicts something else, for the solvers.

        v = f x - g²/2 · score        (Song et al. 2020, arXiv:2011.13456, eq. 13; f and g: `Path.diffusion`)

    Args:
        predict: called as predict(x (B, *S), sigma (B,)).
        source: what it predicts.
        path: the one that it was trained on. Begin at `path.prior(noise)`.
    """
    path = path_of(path)
    return lambda x, sigma: convert(predict(x, sigma), x, sigma, source=source, target="velocity", path=path)
