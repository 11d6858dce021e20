"""The table that `live.py` prints, and how one part is run in both implementations to fill it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from reference_capture import Tap, tapped
from torch import Tensor, nn

Call = Callable[[], dict[str, Tensor]]


@dataclass
class Table:
    """The comparison so far, printed as it grows."""

    limit: float
    departed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        print(f"{'stage':52} {'largest':>10} {'error':>10} {'relative':>10}")

    def add(self, stage: str, reference: Tensor, ours: Tensor, looser: float = 1) -> None:
        """Compare one stage."""
        if reference.shape != ours.shape:
            self.departed.append(stage)
            print(f"{stage:52} shape {tuple(ours.shape)}, the reference has {tuple(reference.shape)}")
            return
        largest = float(reference.double().abs().max())
        error = float((reference.double() - ours.double()).abs().max())
        relative = error / largest if largest else error
        fits = relative <= self.limit * looser
        print(f"{stage:52} {largest:10.3g} {error:10.2e} {relative:10.2e}{'' if fits else '  <- departs'}")
        if not fits:
            self.departed.append(stage)

    def add_equal(self, stage: str, reference: Tensor, ours: Tensor) -> None:
        """Compare what must be equal: token ids, noise levels."""
        same = reference.shape == ours.shape and torch.equal(reference, ours)
        print(f"{stage:52} {'equal' if same else 'differs  <- departs'}")
        if not same:
            self.departed.append(stage)

    def add_all(self, prefix: str, reference: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
        """Compare activations that hooks collected, in the order of the reference's run."""
        for stage, tensor in reference.items():
            self.add(f"{prefix} {stage}", tensor, ours[stage])


def run_both(
    table: Table,
    name: str,
    modules: tuple[nn.Module, nn.Module],
    taps: Mapping[str, Tap],
    calls: tuple[Call, Call],
) -> dict[str, Tensor]:
    """Run the reference's module and ours with hooks, compare, and return the reference's outputs."""
    reference, ours = modules
    with tapped(reference, taps) as their_stages:
        their_outputs = calls[0]()
    paths = {stage: stage.removesuffix(".x").removesuffix(".context") for stage in their_stages}
    with tapped(ours, {path: (path, _streams) for path in set(paths.values())}) as our_stages:
        our_outputs = calls[1]()
    table.add_all(name, their_stages | their_outputs, our_stages | our_outputs)
    return their_outputs


def _streams(output: object) -> dict[str, Tensor]:
    """What one of our modules gives: a tensor, or the two streams of a joint block."""
    if isinstance(output, Tensor):
        return {"": output}
    return {
        name: tensor for name, tensor in zip((".x", ".context"), output, strict=True) if tensor is not None
    }
