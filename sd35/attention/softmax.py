"""Attention probabilities from queries and keys, a few rows at a time.

H  heads    Q  queries    L  keys    K  width of a head    C  queries of one chunk
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_BYTES = 16 * 2**20
"""What the probabilities of one chunk may take. A whole map of SD3.5-medium at 1024 x 1024 takes 1.75 GiB."""


def attention_rows(q: Tensor, k: Tensor, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[slice, Tensor]]:
    """Rows of softmax(q kᵀ / √K), in float32 whatever the model computes in.

    Args:
        q: queries, (H, Q, K).
        k: keys, (H, L, K).
        chunk_bytes: of the probabilities that are in memory at a time; one row of each head at least.

    Yields:
        Which queries, and their probabilities (H, C, L); every row sums to 1.
    """
    heads, queries, width = q.shape
    rows = max(1, chunk_bytes // (heads * k.shape[1] * 4))
    keys = k.float().transpose(1, 2)  # (H, K, L)
    for start in range(0, queries, rows):
        chosen = slice(start, min(start + rows, queries))
        yield chosen, _softmax(torch.bmm(q[:, chosen].float() * width**-0.5, keys))


def logit_rows(logits: Tensor, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[slice, Tensor]]:
    """Rows of softmax(logits), (H, Q, L), as `attention_rows` gives them."""
    heads, queries, keys = logits.shape
    rows = max(1, chunk_bytes // (heads * keys * 4))
    for start in range(0, queries, rows):
        chosen = slice(start, min(start + rows, queries))
        yield chosen, logits[:, chosen].float().softmax(dim=-1)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, in place: a second tensor of this size would double the memory."""
    logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_()
    return logits.div_(logits.sum(dim=-1, keepdim=True))
