"""The embedded model's text encoders and MM-DiT: their sizes, and how they are trained together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdit import MMDiT, MMDiTConfig, init_weights
from textenc import CLIP, T5, CLIPConfig, CLIPOutput, T5Config, assemble

MMDIT = MMDiTConfig(
    dim=192, depth=6, num_heads=3, pos_embed_size=32, context_dim=256, pooled_dim=64 + 128, dual_blocks=(0, 1)
)
POSITIONS = 77  # of CLIP


class Painter(nn.Module):
    """All that is trained: text encoders and transformer, each under the name of its file.

    Text encoders of this size need no training of their own: they learn from what the MM-DiT makes of them.
    """

    def __init__(self, clip_vocabulary: int, t5_vocabulary: int, generator: torch.Generator) -> None:
        super().__init__()
        shared: dict[str, Any] = {"vocab_size": clip_vocabulary, "positions": POSITIONS, "depth": 2}
        self.clip_l = CLIP(
            CLIPConfig(
                dim=64, num_heads=1, mlp_dim=256, projection_dim=None, activation="quick_gelu", **shared
            )
        )
        self.clip_g = CLIP(
            CLIPConfig(dim=128, num_heads=2, mlp_dim=512, projection_dim=128, activation="gelu", **shared)
        )
        self.t5 = T5(
            T5Config(
                vocab_size=t5_vocabulary, dim=256, depth=2, num_heads=4, head_dim=64, mlp_dim=512, buckets=32
            )
        )
        self.mmdit = MMDiT(MMDIT)
        for encoder in (self.clip_l, self.clip_g, self.t5):
            encoder.initialize(generator)
        init_weights(self.mmdit, generator)

    def encode(self, ids: Sequence[Tensor], keep: Tensor) -> tuple[Tensor, Tensor]:
        """Context and pooled vector of a batch of token ids, one tensor of them for each encoder.

        Args:
            ids: for CLIP-L, CLIP-G (B, L each) and T5 (B, L').
            keep: (3, B), 0 where an encoder's part of a caption is to be zero, 1 elsewhere.
        """
        clip_l, clip_g = _clip(self.clip_l, ids[0]), _clip(self.clip_g, ids[1])
        t5 = self.t5.encoder(self.t5.shared(ids[2]))
        keep = keep.to(t5.dtype)
        return assemble(_masked(clip_l, keep[0]), _masked(clip_g, keep[1]), t5 * keep[2][:, None, None])


def _clip(clip: CLIP, ids: Tensor) -> CLIPOutput:
    """What the encoder's own forward gives, without its look at the ids, for which a card would wait."""
    penultimate, last = clip.text_model(ids)
    pooled = last[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]
    if clip.config.projection_dim is not None:
        pooled = clip.text_projection(pooled)
    return CLIPOutput(penultimate, last, pooled)


def _masked(output: CLIPOutput, keep: Tensor) -> CLIPOutput:
    """An encoder's output with zeros for the captions that it is not to tell of; keep is (B,)."""
    keep = keep[:, None]
    return output._replace(penultimate=output.penultimate * keep[:, :, None], pooled=output.pooled * keep)
