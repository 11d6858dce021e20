"""Noise as a function of seeds alone: what a picture starts from, and what training draws."""

from collections.abc import Sequence

import torch
from torch import Tensor


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator for each seed, on the CPU, where its numbers are the same on every machine."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_noise(sources: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise for a batch, every sample from a generator of its own.

    In float32 on the CPU, whatever the model computes in and where: so a seed means the same noise on every
    device, and sample k of a batch is what it would be alone.

    Args:
        sources: one generator for each of B samples, on the CPU.
        shape: of one sample, (16, h, w) for latents.

    Returns:
        (B, *shape), float32.
    """
    return torch.stack([torch.randn(*shape, generator=source, dtype=torch.float32) for source in sources])


def seeded(seed: int, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on these numbers and nothing else."""
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return torch.Generator(device).manual_seed(seed)
