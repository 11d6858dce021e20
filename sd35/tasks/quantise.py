"""Round a transformer's weights to 8 bits, and measure what that does to its velocity, layer by layer."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmdit import MMDiT
from weights.component import Component
from weights.load_into import linear_weights
from weights.packed.linear import PackedLinear
from weights.packed.value import Packed
from weights.packed.write import TARGETS, rounded, write_packed

from ..adapters.swap import Swap
from ..errors import SettingsError
from ..saved.write import written
from ..size import native_size

PREFIX = "model.diffusion_model."
SIGMAS = (0.95, 0.75, 0.5, 0.25, 0.05)
"""Noise levels at which the velocity is compared."""


@dataclass(frozen=True)
class State:
    """One state of a flow, at which a velocity is asked for."""

    latents: Tensor  # (1, 16, h, w)
    sigma: Tensor  # (1,)
    context: Tensor  # (1, M, 4096)
    pooled: Tensor  # (1, 2048)


@dataclass(frozen=True)
class LayerError:
    """What rounding one layer alone does to the velocity."""

    path: str
    parameters: int
    error: float  # ‖v' - v‖ / ‖v‖ over all states


@dataclass(frozen=True)
class Quantised:
    """What `quantise` wrote, and what it costs. `str(quantised)` is for people."""

    path: Path
    to: str
    rows: tuple[LayerError, ...]
    error: float  # of all layers together
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        width = max(len(row.path) for row in self.rows)
        lines = [f"{'layer rounded alone':<{width}}  parameters  error of the velocity"]
        lines += [f"{row.path:<{width}}  {row.parameters:>10,}  {row.error:.3e}" for row in self.rows]
        shrunk = f"{self.bytes_before / 1e6:,.1f} to {self.bytes_after / 1e6:,.1f} MB"
        lines.append(f"{'all of them, ' + self.to:<{width}}  {shrunk:>10}  {self.error:.3e}")
        return "\n".join(lines)


def quantise(
    component: Component,
    mmdit: MMDiT,
    states: Iterable[State],
    path: Path,
    *,
    to: str = "int8",
    overwrite: bool = False,
    progress: bool = False,
) -> Quantised:
    """Write a transformer with the linear layers of its blocks in 8 bits, a scale for each row.

    Embedders, the final layer, norms and biases stay as they are: few bytes, and most of the error.

    Args:
        component: what the weights are read from, so that what is not rounded keeps its bits.
        mmdit: the same, loaded; it is left as it was.
        states: where the velocity is compared.
        path: the file to write.
        to: "int8", "fp8" (e4m3fn) or "fp8_e5m2".
        overwrite: whether the file may exist.
        progress: show a bar on stderr.

    Raises:
        SettingsError: there is no such target, or the weights are in few bits already.
        FileExistsError: the file exists and may not be replaced.
    """
    if to not in TARGETS:
        raise SettingsError(f"weights are rounded to {', '.join(TARGETS)}, got {to!r}")
    if component.in_few_bits:
        raise SettingsError(f"{component.where} is in few bits already: name a file of full precision")
    names = linear_weights(mmdit)
    packed = {name: rounded(tensor, to) for name, tensor in component.tensors(names).items()}
    states = list(states)
    before = _velocities(mmdit, states)
    rows = []
    for name in tqdm(names, disable=not progress, desc="layers"):
        with Swap(mmdit, dict(_layers({name: packed[name]}))):
            error = _relative(_velocities(mmdit, states), before)
        rows.append(LayerError(name.removesuffix(".weight"), packed[name].rows.numel(), error))
    with Swap(mmdit, dict(_layers(packed))):
        error = _relative(_velocities(mmdit, states), before)
    rest = component.tensors(tuple(name for name in component.recipes if name not in packed))
    with written(path, overwrite=overwrite) as temporary:
        write_packed(temporary, rest, packed, to, prefix=PREFIX, metadata=_modelspec(component))
    size = sum(info.nbytes for info in component.sources.values())
    return Quantised(path, to, tuple(rows), error, size, path.stat().st_size)


def _modelspec(component: Component) -> dict[str, str]:
    """What the header says of a model beside its weights: the size that it draws, and its name.

    The name tells large-turbo from large, and the file that is written may have another.
    """
    size = native_size(component)
    said = {key: text for key, text in component.unit.metadata.items() if key.startswith("modelspec.")}
    name = Path(component.where).name.removesuffix(".safetensors")
    return {"modelspec.title": name} | said | {"modelspec.resolution": f"{size.width}x{size.height}"}


def made_up_states(mmdit: MMDiT, *, side: int = 32, tokens: int = 77) -> Iterator[State]:
    """States for a transformer alone: noise at every level, texts of noise too, from fixed seeds."""
    config, device = mmdit.config, mmdit.pos_embed.device
    side = min(side, config.patch_size * config.pos_embed_size)
    for seed, sigma in enumerate(SIGMAS):
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(1, config.channels, side, side, generator=generator)
        context = torch.randn(1, tokens, config.context_dim, generator=generator)
        pooled = torch.randn(1, config.pooled_dim, generator=generator)
        yield State(
            latents.to(device), torch.tensor([sigma], device=device), context.to(device), pooled.to(device)
        )


def _layers(packed: Mapping[str, Packed]) -> Iterator[tuple[str, "_Make"]]:
    """Path to what makes the layer in 8 bits from the one that stands there."""
    for name, weight in packed.items():
        yield name.removesuffix(".weight"), _Make(weight)


@dataclass(frozen=True)
class _Make:
    """Makes a layer with a weight in 8 bits and the bias of another."""

    weight: Packed

    def __call__(self, base: nn.Module) -> nn.Module:
        assert isinstance(base, nn.Linear)
        layer = PackedLinear(self.weight, bias=base.bias is not None)
        layer.bias = base.bias
        return layer.to(base.weight.device)


@torch.no_grad()
def _velocities(mmdit: MMDiT, states: list[State]) -> Tensor:
    """The velocity at every state, end to end, in float64."""
    found = [mmdit(one.latents, one.sigma, one.context, one.pooled) for one in states]
    return torch.cat([velocity.double().flatten() for velocity in found])


def _relative(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())
