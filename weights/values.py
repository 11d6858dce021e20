"""Weights that are NaN or infinite, found before they become a black picture."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from .errors import ValuesError
from .packed.value import Packed

WHOLE_BYTES = 2**29
"""Up to this size a part is read through: half a gigabyte takes about 0.1 s. Of a bigger one, big tensors
are sampled, since reading 5 GB would cost more than everything else that loading does."""

SAMPLED_ELEMENTS = 2**20
"""Tensors up to this size are read through in any case: every bias and norm of the released models."""

BLOCK = 2**12
"""Elements at the start, the middle and the end of a bigger tensor that are looked at."""


def nonfinite(module: nn.Module) -> list[str]:
    """Name the parameters and buffers of a module that hold a NaN or an infinity; all weights are read.

    What to call when a model's output is NaN: it tells a damaged checkpoint from an overflow.
    """
    return [name for name, tensor in module.state_dict().items() if not _is_finite(tensor)]


def check_finite(tensors: Mapping[str, Tensor], *, name: str, whole: bool = False) -> None:
    """Refuse tensors with a NaN or an infinity.

    Args:
        tensors: name to tensor, not on the meta device.
        name: where they come from, for the message.
        whole: read everything, however much it is; otherwise big tensors are sampled beyond `WHOLE_BYTES`.

    Raises:
        ValuesError: at least one is not finite; the message names them.
    """
    whole = whole or sum(tensor.nbytes for tensor in tensors.values()) <= WHOLE_BYTES
    bad = [
        key
        for key, tensor in tensors.items()
        if not all(_is_finite(block) for block in _blocks(tensor, whole=whole))
    ]
    if bad:
        raise ValuesError(
            f"{name} has NaN or infinite weights in {len(bad)} of {len(tensors)} tensors ({_some(bad)}): the "
            "file is damaged, or its training had failed. Fetch it again, or use another checkpoint"
        )


def check_packed(tensors: Mapping[str, Packed], dtype: torch.dtype, *, name: str) -> None:
    """Refuse weights in few bits that stand for a NaN, an infinity, or more than a dtype holds.

    Args:
        tensors: name to weight. Of big ones in a big part some rows are unpacked, as `check_finite` samples.
        dtype: what they are rounded to when they are used.
        name: where they come from, for the message.

    Raises:
        ValuesError: at least one is not finite; the message names them.
    """
    whole = sum(weight.rows.nbytes for weight in tensors.values()) <= WHOLE_BYTES
    bad = []
    for key, weight in tensors.items():
        count = len(weight.rows)
        spans = [(0, count)] if whole or count <= 24 else [(i, i + 8) for i in (0, count // 2, count - 8)]
        if not all(_is_finite(weight.unpack_rows(*span).to(dtype)) for span in spans):
            bad.append(key)
    if bad:
        raise ValuesError(
            f"{name} has NaN or infinite weights in {len(bad)} of {len(tensors)} tensors in few bits "
            f"({_some(bad)}), or numbers too big for {str(dtype).removeprefix('torch.')}: the file is "
            "damaged. Fetch it again"
        )


def check_cast(tensors: Mapping[str, Tensor], dtype: torch.dtype, *, name: str) -> None:
    """Refuse weights that are finite as stored and overflow in the dtype they were cast to.

    Args:
        tensors: name to tensor, after the cast.
        dtype: what they were cast to.
        name: where they come from, for the message.

    Raises:
        ValuesError: at least one overflowed.
    """
    bad = [key for key, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        limit = torch.finfo(dtype).max
        raise ValuesError(
            f"{name} has weights beyond {limit:g}, the largest {str(dtype).removeprefix('torch.')} number "
            f"({_some(bad)}): load it as bfloat16 or float32"
        )


def _blocks(tensor: Tensor, *, whole: bool) -> Iterator[Tensor]:
    """What of a tensor is looked at: everything, or a block of either end and one of the middle."""
    if whole or tensor.numel() <= SAMPLED_ELEMENTS:
        yield tensor
        return
    flat = tensor.flatten()
    for start in (0, flat.numel() // 2, flat.numel() - BLOCK):
        yield flat[start : start + BLOCK]


def _is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. The extremes carry both, in one pass and without a copy."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.itemsize == 1:
        tensor = tensor.to(
            torch.float16
        )  # holds every 8-bit value; the extremes of those are not implemented
    low, high = tensor.aminmax()
    return bool(low.isfinite() and high.isfinite())


def _some(names: Iterable[str]) -> str:
    """The first few names."""
    first, *rest = names
    return f"{first} and {len(rest)} more" if rest else first
