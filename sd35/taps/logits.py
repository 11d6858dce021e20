"""The logits of an attention, which the model itself never holds: made where they are asked for.

H  heads    L  tokens    K  width of a head    D  H * K
"""

import torch
from torch import Tensor, nn

from mmdit.blocks import DotProductAttention

LOGITS = "logits"
"""The last segment of their taps, as in `joint_blocks.3.attention.logits`."""


def has_logits(module: nn.Module) -> bool:
    """Whether a module computes its attention by the formula below; another in its place may do anything."""
    return type(module) is DotProductAttention and "forward" not in vars(module)


def logits_of(q: Tensor, k: Tensor) -> Tensor:
    """Q kᵀ / √K, two (B, H, L, K) to (B, H, L, L), query first; in float32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.to(wide) @ k.to(wide).transpose(-2, -1) * q.shape[-1] ** -0.5


def attend(logits: Tensor, v: Tensor) -> Tensor:
    """softmax(logits) v, heads merged: (B, H, L, L) and (B, H, L, K) to (B, L, D), in the dtype of `v`."""
    out = logits.softmax(dim=-1) @ v.to(logits.dtype)  # (B, H, L, K)
    return out.transpose(1, 2).flatten(2).to(v.dtype)
