"""Token ids as both encoders take them."""

import torch
from torch import Tensor


def check_ids(ids: Tensor, *, vocab_size: int, max_length: int | None = None) -> None:
    """Refuse ids that an encoder cannot read.

    Raises:
        ValueError: not an integer tensor, not (B, L), empty, longer than `max_length`, or outside
            [0, vocab_size), which means that the tokenizer belongs to another encoder.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"token ids must be int64 or int32, got {ids.dtype}")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"token ids must be (batch, length) and not empty, got {tuple(ids.shape)}")
    if max_length is not None and ids.shape[1] > max_length:
        raise ValueError(f"{ids.shape[1]} tokens are too many: this encoder has {max_length} positions")
    if (
        ids.is_meta or torch.compiler.is_compiling()
    ):  # also under torch.export: there are no values to look at
        return
    low, high = (int(value) for value in ids.aminmax())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(
            f"token id {wrong} is outside this encoder's vocabulary of {vocab_size}: "
            "the tokenizer belongs to another encoder"
        )
