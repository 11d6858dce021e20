"""Another processor, imagined: the same functions, whose last bits and orders of sums are others.

Libraries of vector functions agree to a unit in the last place, and libraries of matrix products to the
order of their sums. `other_processor(seed)` changes both below torch's operators: what an elementwise
function gives is moved by one unit up, down, or not at all, as a function of its value, so that one number
still has one sine; and what is summed is summed in another order.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

FUNCTIONS = frozenset(
    getattr(aten, name)
    for name in (
        *(
            "exp",
            "exp2",
            "log",
            "log1p",
            "expm1",
            "sin",
            "cos",
            "tan",
            "tanh",
            "atan2",
            "erf",
            "erfinv",
            "pow",
        ),
        *("sqrt", "rsqrt", "sigmoid", "silu", "gelu", "softplus", "_softmax", "_log_softmax", "logsumexp"),
        *("native_layer_norm", "native_group_norm"),
    )
)
"""Whose last bit depends on the library. Sums, products and quotients of two numbers never do (IEEE 754);
a square root does not either, and is here for the processors that take it from a reciprocal."""

ATTENTION = frozenset({aten._scaled_dot_product_flash_attention_for_cpu})
"""Where it is not used, attention comes as its products and softmax."""


class OtherProcessor(TorchDispatchMode):
    """A `with` block inside which torch computes as another processor might."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.moved: set[str] = set()  # the functions that were met

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = func.overloadpacket
        name = operator.__name__
        if name.endswith("_") and not name.startswith("_"):  # in place
            output = func(*args, **kwargs)
            if getattr(aten, name[:-1], None) in FUNCTIONS:
                self.moved.add(name)
                args[0].copy_(self.neighbour(args[0]))
            return output
        if operator in ATTENTION:
            self.moved.add(name)
            args, kwargs = attention(self, *args, **kwargs)
            return func(*args, **kwargs)
        if operator in REORDERED:
            self.moved.add(name)
            return func(*REORDERED[operator](self, *args), **kwargs)
        output = func(*args, **kwargs)
        if operator not in FUNCTIONS or kwargs.get("out") is not None:
            return output
        self.moved.add(name)
        if isinstance(output, Tensor):
            return self.neighbour(output)
        return (self.neighbour(output[0]), *output[1:])

    def neighbour(self, y: Tensor) -> Tensor:
        """Each number, or the next one above or below it, by a hash of its bits."""
        if y.dtype not in (torch.float32, torch.float64):
            return y
        bits = y.contiguous().view(torch.int32 if y.dtype == torch.float32 else torch.int64)
        mixed = (bits.long() * 0x9E3779B97F4A7C1 + self.seed * 0x2545F491).bitwise_right_shift(29)
        towards = (mixed % 3 - 1).to(y.dtype) * torch.inf  # -inf, nan, inf
        moved = torch.where(towards.isnan(), y, y.nextafter(towards))
        # Zero, one and infinity are exact everywhere: exp(-inf) = 0, cos(0) = 1.
        exact = (y == 0) | (y.abs() == 1) | ~y.isfinite()
        return torch.where(exact, y, moved)

    def order(self, length: int, device: torch.device) -> Tensor:
        """A permutation of so many summands, the same at each call."""
        generator = torch.Generator().manual_seed(self.seed + length)
        return torch.randperm(length, generator=generator).to(device)


def matrix_product(mode: OtherProcessor, a: Tensor, b: Tensor, *rest: Any) -> tuple[Any, ...]:
    """(…, n, k) and (…, k, m)."""
    order = mode.order(a.shape[-1], a.device)
    return (a.index_select(-1, order), b.index_select(-2, order), *rest)


def sum_and_product(mode: OtherProcessor, bias: Tensor, a: Tensor, b: Tensor, *rest: Any) -> tuple[Any, ...]:
    return (bias, *matrix_product(mode, a, b, *rest))


def convolution(mode: OtherProcessor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Any, ...]:
    """Channels in another order; not with groups, or transposed."""
    if x.shape[1] != weight.shape[1]:
        return (x, weight, *rest)
    order = mode.order(x.shape[1], x.device)
    return (x.index_select(1, order), weight.index_select(1, order), *rest)


def attention(
    mode: OtherProcessor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    **options: Any,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The channels of queries and keys in another order, and the keys too where no order is meant."""
    order = mode.order(q.shape[-1], q.device)
    q, k = q.index_select(-1, order), k.index_select(-1, order)
    mask = options.get("attn_mask")
    if not causal:
        order = mode.order(k.shape[-2], k.device)
        k, v = k.index_select(-2, order), v.index_select(-2, order)
        if mask is not None and mask.shape[-1] > 1:
            options["attn_mask"] = mask.index_select(-1, order)
    return (q, k, v, dropout, causal), options


REORDERED: dict[Any, Callable[..., tuple[Any, ...]]] = {
    aten.mm: matrix_product,
    aten.bmm: matrix_product,
    aten.addmm: sum_and_product,
    aten.baddbmm: sum_and_product,
    aten.convolution: convolution,
    aten.mkldnn_convolution: convolution,
}


@contextmanager
def other_processor(seed: int) -> Iterator[OtherProcessor]:
    """Compute as another processor might, one for each seed."""
    with OtherProcessor(seed) as mode:
        yield mode
