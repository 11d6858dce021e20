"""What is computed before the first step, so that what it is computed from need not be there meanwhile."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flow import SOLVERS
from mmdit import MMDiT, crop_table, is_watched, release_modulation

from ..velocity import GuidedVelocity


@contextmanager
def modulation_first(
    velocity: GuidedVelocity, count: int, solver: str, sigmas: Tensor, **options: Any
) -> Iterator[int]:
    """Within the block, the vectors of a schedule stand in the place of the layers that give them.

    The velocity stays what it was, to the last bit, and so do the layers, which come back at the end. Nothing
    is done where a solver chooses its levels as it goes, or where somebody watches these layers.

    Args:
        velocity: of the generation.
        count: of its samples.
        solver: that follows it, by name.
        sigmas: the levels that it is run on, (steps + 1,), in the dtype of the states.
        options: of the solver.

    Yields:
        Bytes saved.
    """
    mmdit = velocity.mmdit
    if SOLVERS[solver].evaluations is None or is_watched(mmdit, "adaLN_modulation"):
        yield 0
        return
    levels = levels_asked(solver, sigmas.to(mmdit.pos_embed.device), options)
    released = release_modulation(mmdit, levels, velocity.pooled(count))
    try:
        yield released.saved
    finally:
        released.restore()


@contextmanager
def positions_of(mmdit: MMDiT, height: int, width: int) -> Iterator[None]:
    """Within the block, the device holds of the positions those alone that a size reads: the same bits.

    Args:
        mmdit: whose table it is; it comes back at the end.
        height: of the latents.
        width: of the latents.
    """
    patch, device = mmdit.config.patch_size, mmdit.pos_embed.device
    whole = crop_table(mmdit, height // patch, width // patch).to("cpu")
    try:
        yield
    finally:
        mmdit.pos_embed = whole.to(device)


def levels_asked(solver: str, sigmas: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Every level at which a solver calls the velocity, by running it on one number that stays.

    On the device of `sigmas`, where levels between those of the table are then rounded as they will be.
    """
    asked: dict[float, Tensor] = {}

    def still(x: Tensor, sigma: Tensor) -> Tensor:
        asked[float(sigma[0])] = sigma[0]
        return torch.zeros_like(x)

    own = SOLVERS[solver]
    noise = {"generator": [torch.Generator()]} if own.stochastic else {}
    for _ in own.run(still, sigmas.new_zeros(1, 1), sigmas, **options, **noise):
        pass
    return torch.stack(list(asked.values()))
