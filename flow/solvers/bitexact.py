"""Reversible Heun in integers: a generation that can be undone to the very last bit.

The state lives on a grid of spacing 2⁻ᵇ as 64-bit integers, and what a velocity adds is rounded to it, q(·).
Integer sums have no rounding, so undoing a step subtracts exactly what was added, as long as a velocity has
the same bits when it is asked a second time. It may be computed in bfloat16; it sees the very same input.

    A = q(h m / 2);    z' = 2 x - z + 2 A;    m' = v(z', σ');    A' = q(h m' / 2);    x' = x + A + A'

The halves are rounded, not the whole, or z and x would disagree by a unit on the way back. A last step to σ
= 0 uses the m it has, x' = x + q(h m), so that 0 is never evaluated.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..errors import FlowError
from ..precision import as_float64, off_mps
from .base import Step, Velocity, evaluate, prepare

GRID_BITS = 20
"""Rounding to 2⁻²⁰ costs far less than the solver's own error, and every state below 16 is a float32."""

NEEDS = (
    "Bit-exact inversion needs a velocity that gives the same bits for the same input: the same device, "
    "library, kernels, number of threads and batch, and no dropout"
)


def bitexact(velocity: Velocity, x: Tensor, sigmas: Tensor, *, bits: int = GRID_BITS) -> Iterator[Step]:
    """Reversible Heun on an integer grid, undone with equal bits. Order 2; one evaluation a step.

    One evaluation more is spent at the start, to see that the velocity repeats itself, and one where the
    table does not end at 0. The companion holds what x, in its dtype, does not, in the smallest integers
    that do:

        z              z - x, on the grid
        check          sums of the bits of the velocity that undoing evaluates first, (B,)
        start          the noise less its nearest grid point; left out where the noise lies on the grid
        remainder      x on the grid less x; left out where x holds it all, as float32 does below 2²⁴⁻ᵇ

    With noise put on the grid beforehand (`on_grid`) that is z and little else: a megabyte for an image of
    1024 x 1024 pixels, as much as its latents.

    Args:
        velocity: called as velocity(x, sigma), sigma being (B,).
        x: the state at `sigmas[0]`, (B, *S).
        sigmas: noise levels in [0, 1], (steps + 1,).
        bits: b; the grid's spacing is 2⁻ᵇ. 8 to 40.

    Raises:
        FlowError: bits out of range, a state beyond the grid, a velocity that does not repeat itself; and
            as in `euler`.
    """
    x, sigmas = prepare(x, sigmas)
    check_bits(bits)
    hs, levels = as_float64(sigmas).diff(), sigmas.tolist()

    def steps(start: Tensor) -> Iterator[Step]:
        x = to_grid(start, bits)
        z, m = x, evaluate(velocity, from_grid(x, bits, start), sigmas[0], 0)
        if not torch.equal(m, evaluate(velocity, from_grid(z, bits, start), sigmas[0], 0)):
            raise FlowError(
                f"the velocity gave other values when asked twice at sigma {float(sigmas[0]):g}. {NEEDS}"
            )
        offset = start - from_grid(x, bits, start)
        for number, h in enumerate(hs):
            sigma, sigma_next = sigmas[number], sigmas[number + 1]
            v = m
            half = pushed(h / 2, v, bits)
            if levels[number + 1] == 0:
                x = x + pushed(h, v, bits)
            else:
                z = 2 * x - z + 2 * half
                m = evaluate(velocity, from_grid(z, bits, start), sigma_next, number)
                x = x + half + pushed(h / 2, m, bits)
            seen = from_grid(x, bits, start)
            companion = {"z": compact(z - x), "check": bit_sums(m)}
            if offset.any():
                companion["start"] = offset
            if (remainder := x - to_grid(seen, bits)).any():
                companion["remainder"] = compact(remainder)
            yield Step(number, sigma, sigma_next, v, seen, companion)

    return steps(x)


def undo_bitexact(
    velocity: Velocity, x: Tensor, companion: Mapping[str, Tensor], sigmas: Tensor, *, bits: int = GRID_BITS
) -> Iterator[Step]:
    """Run `bitexact` backward; see `undo_reversible_heun` for arguments and steps.

    The first velocity is compared with the generation's, and at the end z must have met x again, which it
    does only if every velocity was the generation's.

    Raises:
        FlowError: the companion does not fit, or a velocity has other bits than in the generation.
    """
    x, sigmas = prepare(x, sigmas)
    check_bits(bits)
    _check_companion(x, companion)
    hs = as_float64(sigmas).diff()

    def steps(end: Tensor) -> Iterator[Step]:
        x = to_grid(end, bits)
        x = x + companion["remainder"].to(x) if "remainder" in companion else x
        z = x + companion["z"].to(x)
        first = len(hs) - 1 if sigmas[-1] == 0 else len(hs)
        m = evaluate(velocity, from_grid(z, bits, end), sigmas[first], len(hs) - 1)
        if wrong := (bit_sums(m) != companion["check"].to(x)).nonzero().flatten().tolist():
            raise FlowError(
                f"the velocity is not the generation's, for samples {wrong} of the batch. {NEEDS}"
            )
        for number in reversed(range(len(hs))):
            sigma, sigma_next, h = sigmas[number], sigmas[number + 1], hs[number]
            if sigma_next == 0:
                x = x - pushed(h, m, bits)
            else:
                half = pushed(h / 2, m, bits)
                z = 2 * x - z - 2 * half
                m = evaluate(velocity, from_grid(z, bits, end), sigma, number)
                x = x - half - pushed(h / 2, m, bits)
            if number == 0 and not torch.equal(x, z):
                raise FlowError(f"the way back did not end where the generation began. {NEEDS}")
            seen = from_grid(x, bits, end)
            if number == 0 and "start" in companion:
                seen = seen + companion["start"].to(end)
            yield Step(number, sigma_next, sigma, m, seen, {"z": compact(z - x), "check": bit_sums(m)})

    return steps(x)


def on_grid(noise: Tensor, bits: int = GRID_BITS) -> Tensor:
    """Noise moved to the nearest point of the grid, by at most 2⁻ᵇ⁻¹, in its dtype."""
    check_bits(bits)
    return from_grid(to_grid(noise, bits), bits, noise)


def to_grid(x: Tensor, bits: int) -> Tensor:
    """The nearest grid point, as int64 in units of 2⁻ᵇ; on the CPU where the device has no float64.

    Raises:
        FlowError: a value so large that sums of three could leave int64 or lose bits in float64.
    """
    scaled = as_float64(x) * 2**bits
    if (largest := float(scaled.abs().max())) >= 2**51:
        raise FlowError(
            f"a state of {largest / 2**bits:.3g} is too large for a grid of 2^-{bits}; use fewer bits"
        )
    return scaled.round().long()


def pushed(h: Tensor, v: Tensor, bits: int) -> Tensor:
    """What following v over h adds, on the grid."""
    return to_grid(h * as_float64(v), bits)


def from_grid(x: Tensor, bits: int, like: Tensor) -> Tensor:
    """A grid point as the nearest value in the dtype, and on the device, of `like`."""
    return (x.double() / 2**bits).to(like)


def compact(x: Tensor) -> Tensor:
    """Integers in the smallest dtype that holds them."""
    low, high = int(x.min()), int(x.max())
    for dtype in (torch.int8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return x.to(dtype)
    return x


def bit_sums(m: Tensor) -> Tensor:
    """A sum over a sample's bits that any change of a value, and most exchanges of two, alter: (B,) int64."""
    m = off_mps(m).contiguous().flatten(1)
    bits = m.view(torch.int32 if m.dtype == torch.float32 else torch.int64).long()
    odd = 2 * torch.arange(bits.shape[1], device=m.device) + 1
    return (bits * odd).sum(1)  # wraps around, as it does everywhere


def check_bits(bits: int) -> None:
    """Raise FlowError unless the grid is one on which 64-bit integers and float64 are exact."""
    if not 8 <= bits <= 40:
        raise FlowError(f"bits must lie in 8 ... 40, got {bits}")


def _check_companion(x: Tensor, companion: Mapping[str, Tensor]) -> None:
    if not {"z", "check"} <= set(companion) <= {"z", "check", "start", "remainder"}:
        raise FlowError(
            f"the companion must hold z and check, got {', '.join(sorted(companion)) or 'nothing'}"
        )
    for name, tensor in companion.items():
        shape = x.shape[:1] if name == "check" else x.shape
        if tensor.shape != shape:
            raise FlowError(f"companion {name!r} must be {tuple(shape)}, got {tuple(tensor.shape)}")
