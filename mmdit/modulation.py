"""The modulation vectors of a whole schedule, computed first, so that the layers that give them can go.

They depend on the noise level and the pooled text alone (c in the figure of `MMDiT`), and are the same
for every picture of a prompt. In SD3.5-medium the layers hold 34 % of all weights, 1.53 GB in bfloat16;
the vectors of 28 steps with guidance, 56 MB.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .blocks import AdaLN
from .embed import as_sigma, crop_positions
from .model import MMDiT
from .offload import visiting


class FindStep(nn.Module):
    """In the place of `conditioning`: from c to where its vectors stand in the tables.

    c is compared bit by bit with those of batches of its size, since matrix products round otherwise in
    others. What is not in the table is an error on a CPU; on a GPU, which is not waited for, it points at a
    last row of NaN, so that it never passes for a result.
    """

    known: Tensor

    def __init__(self, batches: Sequence[Tensor]) -> None:
        """Know the c of these batches, (B, D) each, those of one size in a row."""
        super().__init__()
        self.register_buffer("known", torch.cat(list(batches)), persistent=False)
        self.rows: dict[int, tuple[int, int]] = {}
        """Size of a batch to where the rows of its kind begin and end."""
        end = 0
        for one in batches:
            start, end = end, end + len(one)
            self.rows[len(one)] = self.rows.get(len(one), (start, end))[0], end

    def forward(self, c: Tensor) -> Tensor:
        """(B, D) to row numbers, (B,)."""
        start, end = self.rows.get(len(c), (0, 0))
        same = (c[:, None] == self.known[start:end]).all(dim=-1)  # (B, rows)
        found = same.any(dim=-1)
        if end == 0 or (
            c.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(found.all())
        ):
            raise ValueError(
                "these noise levels and pooled texts are not those that the modulation was computed for, in "
                "a batch of the same size: restore() the model, or release it for the new schedule"
            )
        return torch.where(found, start + same.int().argmax(dim=-1), len(self.known))


class Table(nn.Module):
    """In the place of an `AdaLN`: looks its vectors up."""

    vectors: Tensor

    def __init__(self, vectors: Tensor, n: int) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors, persistent=False)  # (S · B + 1, n · D)
        self.n = n

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Row numbers (B,) to `n` times (B, 1, D)."""
        return self.vectors[rows][:, None].chunk(self.n, dim=-1)


@dataclass(frozen=True)
class Released:
    """A model whose modulation is in tables, and the layers that were taken out of it."""

    model: MMDiT
    layers: dict[str, nn.Module]
    """What stood at each path; on the CPU if the model is on another device."""
    home: dict[str, torch.device]
    """Where each of them was."""

    @property
    def saved(self) -> int:
        """Bytes of the layers, less those of the tables."""
        tables = (self.model.get_submodule(path) for path in self.layers)
        return sum(map(_bytes, self.layers.values())) - sum(map(_bytes, tables))

    def restore(self) -> None:
        """Put the layers back, equal to the last bit."""
        for path, layer in self.layers.items():
            self.model.set_submodule(path, layer.to(self.home[path]))


@torch.no_grad()
def release_modulation(model: MMDiT, sigmas: Tensor, pooled: Tensor | Sequence[Tensor]) -> Released:
    """Compute the modulation vectors of every step, and take the layers that give them out of the model.

    The velocities stay what they were, to the last bit: each step's vectors are computed in the batch that
    will ask for them. While the layers are out, `conditioning` passes on row numbers instead of c.

    Args:
        model: changed in place until `restore`; it answers for these steps and texts alone.
        sigmas: every noise level at which the model will be called, (S,); of a solver that looks between
            the steps, those levels too.
        pooled: the pooled text of a call's whole batch, (B, pooled_dim); or those of all
            batches that will be called.

    Raises:
        ValueError: the model's modulation is released already, or a level is outside of [0, 1].
    """
    if isinstance(model.conditioning, FindStep):
        raise ValueError("the modulation of this model is released already: restore() it first")
    c: list[Tensor] = []
    for batch in sorted([pooled] if isinstance(pooled, Tensor) else pooled, key=len):
        text = model.y_embedder(batch.to(model.dtype))
        times = (model.t_embedder(as_sigma(sigma, batch), model.dtype) for sigma in sigmas.unbind())
        c += [model.conditioning(time + text) for time in times]
    stands_in: dict[str, nn.Module] = {"conditioning": FindStep(c)}
    home = {"conditioning": c[0].device}
    for path, layer in _modulations(model):
        home[path] = next(layer.parameters()).device
        with visiting(layer, c[0].device):  # of a block that is kept on the CPU, for instance
            rows = [torch.cat(layer(one), dim=-1)[:, 0] for one in c]  # each (B, n · D)
        stands_in[path] = Table(torch.cat([*rows, torch.full_like(rows[0][:1], torch.nan)]), layer.n)
    layers = {path: model.get_submodule(path) for path in stands_in}
    for path, table in stands_in.items():
        model.set_submodule(path, table)
        layers[path].to("cpu")
    return Released(model, layers, home)


def crop_table(model: MMDiT, height: int, width: int) -> Tensor:
    """Keep of the position table its centre alone, which pictures of up to this size read.

    SD3.5-medium's table of 384 x 384 positions holds 453 MB in bfloat16; the centre for pictures of
    1024 x 1024, 64 x 64 of them, 13 MB. Positions stay what they were, at every size that still fits.

    Args:
        model: its `pos_embed` is replaced.
        height: patches down, of the tallest picture.
        width: patches across, of the widest.

    Returns:
        The whole table: `model.pos_embed = table` puts it back.

    Raises:
        ValueError: the table is smaller than that.
    """
    table = model.pos_embed
    size = round(table.shape[1] ** 0.5)
    side = max(height, width)
    side += (
        (size - side) % 2 if side < size else 0
    )  # as even or odd as the table: the centre stays the centre
    model.pos_embed = crop_positions(table, side, side).clone()
    return table


def _modulations(model: MMDiT) -> Iterator[tuple[str, AdaLN]]:
    """Every layer that gives modulation vectors, by its path."""
    return ((path, layer) for path, layer in model.named_modules() if isinstance(layer, AdaLN))


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.itemsize for t in (*module.parameters(), *module.buffers()))
