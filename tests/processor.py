"""Another processor, imagined: the same functions, whose last bits and orders of sums are others.

Libraries of vector functions agree to a unit in the last place, and libraries of matrix products to the
order of their sums. `other_processor(seed)` changes both below torch's operators: what an elementwise
function gives is moved by one unit up, down, or not at all, as a function of its value, so that one number
still has one sine; and what is summed is summed in another order.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
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


INTEGERS = {torch.float32: (torch.int32, 0x2C1B3C6D), torch.float64: (torch.int64, 0x9E3779B97F4A7C1)}
"""What the bits of a number are read as, and an odd number to hash them by."""


class OtherProcessor(TorchDispatchMode):
    """A `with` block inside which torch computes as another processor might."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.moved: set[str] = set()  # the functions that were met
        self.orders: dict[tuple[int, torch.device], Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = func.overloadpacket
        kind = kind_of(operator) if kwargs.get("out") is None else None
        if kind is not None:
            self.moved.add(operator.__name__)
        if kind == "attention":
            args, kwargs = attention(self, *args, **kwargs)
        elif kind == "sum":
            args = REORDERED[operator](self, *args)
        output = func(*args, **kwargs)
        if kind == "in place":
            args[0].copy_(self.neighbour(args[0]))
        if kind != "function":
            return output
        if isinstance(output, Tensor):
            return self.neighbour(output)
        return (self.neighbour(output[0]), *output[1:])

    def neighbour(self, y: Tensor) -> Tensor:
        """Each number, or the next one nearer to zero or farther from it, by a hash of its bits."""
        if y.dtype not in INTEGERS:
            return y
        integers, odd = INTEGERS[y.dtype]
        bits = y.contiguous().view(integers)
        units = bits.mul(odd).add_(self.seed * 0x2545F491).bitwise_right_shift_(8 * y.itemsize - 3)
        units.sub_(units.bitwise_right_shift(3)).clamp_(-1, 1)  # of -4 ... 3: three, two and three
        # Zero, one and infinity are exact everywhere: exp(-inf) = 0, cos(0) = 1.
        size = y.abs()
        units *= (size > 0) & (size != 1) & (size < torch.inf)
        return units.add_(bits).view(y.dtype)

    def order(self, length: int, device: torch.device) -> Tensor:
        """A permutation of so many summands, the same at each call."""
        if (length, device) not in self.orders:
            generator = torch.Generator().manual_seed(self.seed + length)
            self.orders[length, device] = torch.randperm(length, generator=generator).to(device)
        return self.orders[length, device]


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


@cache
def kind_of(operator: Any) -> str | None:
    """In what way another processor computes an operator otherwise, if at all."""
    name = operator.__name__
    if name.endswith("_") and not name.startswith("_"):
        return "in place" if getattr(aten, name[:-1], None) in FUNCTIONS else None
    kinds = {"attention": ATTENTION, "sum": REORDERED, "function": FUNCTIONS}
    return next((kind for kind, operators in kinds.items() if operator in operators), None)


@contextmanager
def other_processor(seed: int) -> Iterator[OtherProcessor]:
    """Compute as another processor might, one for each seed."""
    with OtherProcessor(seed) as mode:
        yield mode
