"""One large picture on several processes: each has some image tokens, and some heads of each attention.

Ulysses (arXiv:2309.14509): everything but attention looks at one token at a time. Before an attention,
processes exchange tokens for heads, and after it heads for tokens. The text is short, and computed by all.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from mmdit import MMDiT
from mmdit.blocks import DotProductAttention

from ..adapters.swap import Make, Swap
from ..errors import SettingsError


def split_tokens(mmdit: MMDiT, mesh: DeviceMesh) -> Swap:
    """Share the image tokens of a transformer among processes, until the swap that is given back is undone.

    Every process calls the transformer with the same input and gets the whole velocity. It is that of one
    process but for the order of sums.

    Args:
        mmdit: the transformer, whole in each process.
        mesh: of the processes, in one dimension.

    Raises:
        SettingsError: the heads cannot be shared evenly: SD3.5-large has 38, so 2 or 19 processes.
    """
    size, heads = mesh.size(), mmdit.config.num_heads
    if heads % size:
        raise SettingsError(f"{heads} heads cannot be shared by {size} processes")
    own = OwnTokens(mmdit.patches, mesh)
    makers: dict[str, Make] = {
        path: lambda base: ExchangedAttention(base, own, mesh)
        for path, one in mmdit.named_modules()
        if isinstance(one, DotProductAttention)
    }
    makers |= {"patches": lambda _: own, "final_layer": lambda base: AllTokens(base, mesh)}
    return Swap(mmdit, makers)


class OwnTokens(nn.Module):
    """In the place of `patches`: of the image tokens (B, N, D), those of this process."""

    def __init__(self, base: nn.Module, mesh: DeviceMesh) -> None:
        super().__init__()
        self.base, self.mesh = base, mesh
        self.count = 0  # of them, in the call that runs

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N / P, D)."""
        size = self.mesh.size()
        if x.shape[1] % size:
            raise SettingsError(f"{x.shape[1]} image tokens cannot be shared by {size} processes")
        self.count = x.shape[1] // size
        return self.base(x).chunk(size, dim=1)[self.mesh.get_local_rank()]


class AllTokens(nn.Module):
    """In the place of the final layer: its output of all tokens, put together."""

    def __init__(self, base: nn.Module, mesh: DeviceMesh) -> None:
        super().__init__()
        self.base, self.mesh = base, mesh

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, N / P, D) and (B, D) to (B, N, patch² · channels)."""
        return gathered(self.base(x, c), 1, self.mesh)


class ExchangedAttention(nn.Module):
    """In the place of an attention: all tokens, for the heads of this process."""

    def __init__(self, base: nn.Module, own: OwnTokens, mesh: DeviceMesh) -> None:
        super().__init__()
        self.base, self.mesh = base, mesh
        self._own = [own]  # in a list: a module of its own place already

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Three (B, H, M + N / P, K), the M text tokens first, to (B, M + N / P, D)."""
        size, rank = self.mesh.size(), self.mesh.get_local_rank()
        text = q.shape[2] - self._own[0].count  # none where image tokens attend to themselves alone
        heads = []
        for each in (q, k, v):
            same = each[:, :, :text].chunk(size, dim=1)[rank]  # (B, H / P, M, K)
            image = exchanged(each[:, :, text:], 1, 2, self.mesh)  # (B, H / P, N, K)
            heads.append(torch.cat([same, image], dim=2))
        out = self.base(*heads)  # (B, M + N, D / P)
        image = exchanged(out[:, text:], 1, 2, self.mesh)  # (B, N / P, D)
        return torch.cat([gathered(out[:, :text], 2, self.mesh), image], dim=1) if text else image


def exchanged(values: Tensor, scatter: int, gather: int, mesh: DeviceMesh) -> Tensor:
    """Give away parts along one axis, and get parts along another: an all-to-all.

    Args:
        values: with P equal parts along `scatter`; part j goes to process j.
        scatter: an axis that becomes P times shorter.
        gather: an axis that becomes P times longer, in the order of processes.
        mesh: of P processes.
    """
    size = mesh.size()
    sent = torch.stack(values.chunk(size, dim=scatter)).contiguous()  # (P, ...)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=mesh.get_group())
    return torch.cat(received.unbind(0), dim=gather)


def gathered(values: Tensor, axis: int, mesh: DeviceMesh) -> Tensor:
    """The parts of all processes, put together along an axis."""
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(mesh.size())]
    dist.all_gather(parts, values.contiguous(), group=mesh.get_group())
    return torch.cat(parts, dim=axis)
