"""The processes of a run: one, or as many as `torchrun` has started, that share every batch.

Each sees the whole batch and takes its own rows, so that any number of processes learns the same: the mean of
their gradients is the gradient of the batch.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import SettingsError

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others before it takes them for lost."""


@dataclass(frozen=True)
class World:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls, device: torch.device) -> "World":
        """The processes that `torchrun` started, joined; or this one alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Where this process computes: on a card of its own, where there are several."""
        if self.size > 1 and device.type == "cuda":
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return device

    def check(self, batch_size: int) -> None:
        """See that a batch can be shared evenly.

        Raises:
            SettingsError: it cannot.
        """
        if batch_size % self.size:
            raise SettingsError(
                f"a batch of {batch_size} cannot be shared by {self.size} processes: choose a multiple"
            )

    def rows(self, values: Tensor) -> Tensor:
        """The rows of a batch that are this process's."""
        return values[self.rank :: self.size]

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over all processes, in one message."""
        if self.size == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([one.numel() for one in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()


def placed_as(whole: Tensor, like: Any) -> Tensor:
    """This process's part of a tensor, where its like is spread over processes; else the tensor itself."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
