"""How close two tensors are: mean square error, PSNR and cosine similarity, per sample and in all."""

from dataclasses import dataclass

from torch import Tensor

from .errors import FlowError
from .precision import as_float64, wide


@dataclass(frozen=True)
class Closeness:
    """The distance between a tensor and the true one."""

    mse: Tensor
    """(B,), mean square error."""
    psnr: Tensor
    """(B,), 10 log₁₀(range² / mse) in dB; infinite where equal."""
    cosine: Tensor
    """(B,), the cosine of the angle between the samples as vectors, in [-1, 1]."""
    total_mse: float
    """Over the whole batch."""
    total_psnr: float
    """From `total_mse`, not the mean of `psnr`."""
    total_cosine: float
    """The mean of `cosine`."""
    data_range: float
    """The range that PSNR was taken with."""


def closeness(found: Tensor, true: Tensor, data_range: float | None = None) -> Closeness:
    """Compare a tensor with the true one, in float64: on their device, or on the CPU where it has none.

    Args:
        found: (B, *S).
        true: (B, *S).
        data_range: for PSNR; None takes max - min of `true` over the batch, about 8 for noise, so that 20 dB
            is a signal-to-noise ratio of no more than 2 dB. It is stated in the result.

    Raises:
        FlowError: the shapes differ, or the range is not positive.
    """
    if found.shape != true.shape or found.ndim < 2:
        raise FlowError(
            f"expected two (B, ...) of one shape, got {tuple(found.shape)} and {tuple(true.shape)}"
        )
    data_range = float(wide(true).max() - wide(true).min()) if data_range is None else data_range
    if not data_range > 0:
        raise FlowError(f"PSNR needs a positive data_range, got {data_range}; pass one for constant data")
    a, b = as_float64(found).flatten(1), as_float64(true).flatten(1)
    mse = (a - b).square().mean(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return Closeness(
        mse=mse,
        psnr=_psnr(mse, data_range),
        cosine=cosine,
        total_mse=float(mse.mean()),
        total_psnr=float(_psnr(mse.mean(), data_range)),
        total_cosine=float(cosine.mean()),
        data_range=data_range,
    )


def _psnr(mse: Tensor, data_range: float) -> Tensor:
    return 10 * (data_range**2 / mse).log10()
