"""Forwards that were recorded as CUDA graphs: the card repeats them without waiting for Python."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .model import MMDiT

KEPT = 4
"""Graphs that a model keeps, the latest used: with and without guidance, skipped layers, another size."""

Replay = Callable[[], object]
Record = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""From a call to what repeats it, and to the tensor that a repetition writes."""


def record_on_card(run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """Record a call as a CUDA graph, after it ran three times, in which kernels are chosen and compiled."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out


@dataclass(frozen=True)
class _Graph:
    """One recorded forward."""

    inputs: tuple[Tensor, ...]  # which a repetition reads
    out: Tensor  # which it writes
    replay: Replay
    parts: list[object]  # of the model, as it was then


class GraphedForward:
    """In the place of a model's `forward`: repeats what was recorded of a call of the same shapes.

    What is recorded is the very sequence of kernels, so the bits are those of the forward. It is recorded
    anew where any part of the model is another, or has its weights elsewhere; and the forward runs as it is
    written while a hook is on a part, with gradients, and with residuals of a ControlNet. A number within a
    module, such as the scale of a LoRA, is recorded as it was: `forget_graphs` after a change.
    """

    def __init__(self, model: MMDiT, record: Record = record_on_card) -> None:
        self.model, self.record = model, record
        self.graphs: dict[Any, _Graph] = {}

    def __call__(
        self, latents: Tensor, sigma: Tensor | float, context: Tensor, pooled: Tensor, **options: Any
    ) -> Tensor:
        """As `MMDiT.forward`."""
        level = sigma if isinstance(sigma, Tensor) else torch.tensor(float(sigma), dtype=torch.float64)
        given = (latents, level.to(latents.device), context, pooled)
        parts = parts_of(self.model)
        wanted = torch.is_grad_enabled() and any(one.requires_grad for one in given)
        if parts is None or wanted or options.get("residuals") is not None:
            return MMDiT.forward(self.model, *given, **options)
        skipped = tuple(sorted(options.get("skip_layers", ())))
        mode = torch.is_inference_mode_enabled()  # whose tensors cannot be written to outside of it
        key = (skipped, mode, *((one.shape, one.dtype, one.device) for one in given))
        graph = self.graphs.pop(key, None)
        if graph is None or not _same(graph.parts, parts):
            graph = self._record(given, skipped, parts)
        self.graphs[key] = graph  # the latest used is the last
        while len(self.graphs) > KEPT:
            del self.graphs[next(iter(self.graphs))]
        for own, one in zip(graph.inputs, given, strict=True):
            own.copy_(one)
        graph.replay()
        return graph.out.clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphedForward":
        """Of a copied model, for which nothing is recorded yet."""
        return GraphedForward(deepcopy(self.model, memo), self.record)

    def _record(self, given: tuple[Tensor, ...], skipped: tuple[int, ...], parts: list[object]) -> _Graph:
        inputs, where = tuple(one.clone() for one in given), given[0].device
        with (
            torch.cuda.device(where) if where.type == "cuda" else nullcontext()
        ):  # which may not be the first
            replay, out = self.record(lambda: MMDiT.forward(self.model, *inputs, skip_layers=skipped))
        return _Graph(inputs, out, replay, parts)


def parts_of(model: nn.Module) -> list[object] | None:
    """Every module of a model and the address of every tensor in it.

    None where a hook is on a part, or where gradients of a weight are wanted.
    """
    parts: list[object] = []
    training = torch.is_grad_enabled()
    for path, module in model.named_modules():
        if path and (module._forward_hooks or module._forward_pre_hooks):
            return None
        parts.append(module)
        for tensor in _tensors(module):
            if training and tensor.requires_grad:
                return None
            parts.append(tensor.data_ptr())
    return parts


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """The tensors of a module, without those of the modules within it."""
    own = chain(module._parameters.values(), module._buffers.values())
    return (one for one in own if one is not None)


def _same(before: list[object], now: list[object]) -> bool:
    """Whether parts are the same modules, and their tensors at the same addresses."""
    return len(before) == len(now) and all(
        a == b if isinstance(a, int) else a is b for a, b in zip(before, now, strict=True)
    )


def graph_forward(model: MMDiT, record: Record = record_on_card) -> None:
    """Let a model repeat its forwards by CUDA graphs.

    Args:
        model: on a CUDA device, where it stays.
        record: how a call is recorded.
    """
    model.forward = GraphedForward(model, record)


def forget_graphs(model: nn.Module) -> None:
    """Have every forward recorded anew; nothing happens to a model without graphs."""
    forward = model.__dict__.get("forward")
    if isinstance(forward, GraphedForward):
        forward.graphs.clear()


def eager_forward(model: MMDiT) -> None:
    """Undo `graph_forward`; nothing happens to a model without graphs."""
    if isinstance(model.__dict__.get("forward"), GraphedForward):
        del model.forward
