"""Compiles the transformer's blocks for the lengths that training uses, so that training finds them compiled.

python -m sd35.tiny.warm 1024
"""

import sys
import time

import torch

from mmdit import MMDiT

from .painter import MMDIT
from .transformer import LONG, PADDED, SHORT, compile_blocks


def main(batch: int, device: str = "cuda") -> None:
    """Run the MM-DiT forward and backward on random input of a batch of this size, once for each length."""
    model = MMDiT(MMDIT).to(device).bfloat16()
    compile_blocks(model)
    for lengths in (SHORT, PADDED, LONG):
        began = time.monotonic()
        latents, sigma = torch.randn(batch, 16, 16, 16, device=device), torch.rand(batch, device=device)
        context = torch.randn(batch, sum(lengths), MMDIT.context_dim, device=device).bfloat16()
        pooled = torch.randn(batch, MMDIT.pooled_dim, device=device).bfloat16()
        loss = model(latents, sigma, context, pooled).square().mean()
        loss.backward()
        print(f"{lengths}: {loss.item():.4f}, {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
