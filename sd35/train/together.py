"""One operation on many tensors at once: a few launches on a card, where a loop would be hundreds.

torch's optimizers use the same functions; torch has no public name for them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def copy_all(into: Iterable[Tensor], source: Iterable[Tensor]) -> None:
    """Give each tensor the values of its partner, whatever the two dtypes are."""
    torch._foreach_copy_(list(into), list(source))  # pyright: ignore[reportPrivateImportUsage]


def add_all(into: Iterable[Tensor], change: Iterable[Tensor], *, scale: float) -> None:
    """Add `scale` times its partner to each tensor."""
    torch._foreach_add_(list(into), list(change), alpha=scale)  # pyright: ignore[reportPrivateImportUsage]


def approach_all(into: Iterable[Tensor], goal: Iterable[Tensor], share: float) -> None:
    """Move each tensor this share of the way to its partner."""
    torch._foreach_lerp_(list(into), list(goal), share)  # pyright: ignore[reportPrivateImportUsage]
