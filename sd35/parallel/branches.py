"""The halves of guidance on two processes: each runs its rows of every call, and all get all of them."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ..conditions import Call, Condition


def shared_branches(mesh: DeviceMesh) -> Condition:
    """A condition under which the rows of a call, samples times branches, are shared by processes.

    With guidance and one sample there are two rows, with the prompt and without it. All processes draw the
    same picture from the same seed. What is sent a step is the latents, 1 MB at 1024 x 1024 in float32.

    Args:
        mesh: of the processes, in one dimension.
    """
    group, size, rank = mesh.get_group(), mesh.size(), mesh.get_local_rank()

    def condition(call: Call, run: Callable[[Call], Tensor]) -> Tensor:
        rows = len(call.latents)
        if rows % size:  # a call of a single branch is run by all alike
            return run(call)
        own = slice(rank * rows // size, (rank + 1) * rows // size)
        told = call.evaluation
        part = replace(
            call,
            latents=call.latents[own],
            sigma=call.sigma[own],
            context=call.context[own],
            pooled=call.pooled[own],
            residuals=call.residuals and tuple(_rows(one, own, rows) for one in call.residuals),
            evaluation=replace(
                told, samples=told.samples[own], branches=told.branches[own], encodings=told.encodings[own]
            ),
        )
        velocity = run(part).contiguous()
        gathered = [torch.empty_like(velocity) for _ in range(size)]
        dist.all_gather(gathered, velocity, group=group)
        return torch.cat(gathered)

    return condition


def _rows(residual: Tensor | None, own: slice, rows: int) -> Tensor | None:
    """The rows of a residual, which may be one for the whole batch."""
    return residual if residual is None or len(residual) != rows else residual[own]
