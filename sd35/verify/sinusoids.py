"""The sinusoids of the noise level: what processors disagree on, and by how much they may.

Libraries of vector functions differ in the last bit of exp, sin and cos, and so do processors with one
library. A unit in the last place of ω is a thousand units in the angle ω · timestep: 1e-4, where all that
follows is proved to 1e-6 or better. So the reference's sinusoids are stored with its activations; what
follows them is proved from them, and those computed here by themselves, within a bound that is derived:

    |difference| <= 3 t ulp(ω) + ulp(ω t) + 3 ulp(1)

exp, sin and cos err by one unit in the last place in the libraries of CPUs (Sleef's u10, MKL's HA) and by two
in CUDA's; two of them differ by three at most. The product ω t rounds once in each.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

UNITS = 3
"""How far two libraries lie apart in exp, sin or cos, in units in the last place."""


def ulp(x: Tensor) -> Tensor:
    """The distance from |x| to the next larger float32, in float64."""
    x = x.abs().float()
    return x.nextafter(torch.full_like(x, torch.inf)).double() - x.double()


@dataclass(frozen=True)
class Sinusoids:
    """What the reference gave its `t_embedder`, one row for each noise level."""

    sigma: Tensor  # (n,)
    values: Tensor  # (n, 256), float32

    @property
    def bound(self) -> Tensor:
        """How far another processor's may lie from `values`, each by itself: (n, 256), float64."""
        timestep = 1000 * self.sigma.double()[:, None]
        half = self.values.shape[1] // 2
        omega = 10000 ** -(torch.arange(half, dtype=torch.float64) / half)
        bound = UNITS * timestep * ulp(omega) + ulp(timestep * omega) + UNITS * 2**-24  # ulp below 1
        return torch.cat([bound, bound], dim=1)

    def apart(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """How far features (B, 256) lie from every row, and how far they may: both (B or 1, n, 256), float64.

        Below float32 both were rounded, and may have been rounded apart by one unit more.
        """
        stored = self.values.to(features.dtype).double()
        rounded = torch.finfo(features.dtype).eps if features.dtype.itemsize < 4 else 0.0
        return (features.detach().cpu().double()[:, None] - stored).abs(), self.bound[None] + rounded

    def rows(self, features: Tensor) -> Tensor:
        """Which row each of features (B, 256) is, within the bounds: (B,); -1 for none."""
        apart, allowed = self.apart(features)
        fits = (apart <= allowed).all(dim=2)
        return torch.where(fits.any(dim=1), fits.int().argmax(dim=1), -1)


def stand_in(
    reader: nn.Module, stored: Sinusoids, values: Tensor | None = None, computed: list[Tensor] | None = None
) -> RemovableHandle:
    """Have a module read stored sinusoids where those computed here are the same within the bounds.

    Others pass as they are, so that a wrong timestep stays wrong.

    Args:
        reader: what reads sinusoids: `mmdit.t_embedder.mlp`.
        stored: of every noise level that will come.
        values: what is read instead of `stored.values`, (n, 256).
        computed: gathers what was computed here, (B, 256) at each call.
    """
    source = stored.values if values is None else values

    def exchange(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        (features,) = args
        if computed is not None:
            computed.append(features)
        rows = stored.rows(features).to(features.device)
        known = source.to(features.dtype).to(features.device)[rows]  # that of row -1 is not used
        return (torch.where(rows[:, None] < 0, features, known),)

    return reader.register_forward_pre_hook(exchange)


@contextmanager
def standing_in(reader: nn.Module, stored: Sinusoids, values: Tensor | None = None) -> Iterator[list[Tensor]]:
    """`stand_in` for the length of a block, which is given the list of what was computed here."""
    computed: list[Tensor] = []
    handle = stand_in(reader, stored, values, computed)
    try:
        yield computed
    finally:
        handle.remove()


def difference(computed: Tensor, stored: Sinusoids) -> tuple[Tensor, Tensor]:
    """How far sinusoids (n, 256) lie from the stored ones, and how far they may; (n, 256), float64."""
    apart, allowed = stored.apart(computed)
    rows = torch.arange(len(computed))
    return apart[rows, rows], allowed[0]


DEVIATIONS = 8
"""Of `reach`: independent errors go beyond it once in 1e13 (Hoeffding's inequality)."""


def reach(
    reader: nn.Module, stored: Sinusoids, moved: Tensor, compute: Callable[[], Tensor], draws: int = 8
) -> float:
    """How far a result moves when the sinusoids move by so much: the gain of what follows them, measured.

    Every sinusoid is moved up or down at random, the same for one noise level in one draw. The result's
    standard deviation over the draws, the largest of its elements', is multiplied by `DEVIATIONS`.

    Args:
        reader: what reads sinusoids, in float32 or better.
        stored: of every noise level of the computation.
        moved: by how much each is moved, (n, 256).
        compute: gives the result; it runs `reader`.
        draws: how many; eight tell the deviation of one element to a quarter, and of many to less.

    Returns:
        The distance relative to the largest magnitude of the result; 0 where nothing moves.
    """
    if not moved.any():
        return 0.0
    generator = torch.Generator().manual_seed(0)
    with standing_in(reader, stored):
        expected = compute().double()
    squares = torch.zeros_like(expected)
    for _ in range(draws):
        signs = torch.randint(0, 2, moved.shape, generator=generator) * 2 - 1
        with standing_in(reader, stored, stored.values.double() + signs * moved):
            squares += (compute().double() - expected).square()
    return DEVIATIONS * float((squares / draws).sqrt().max() / expected.abs().max())
