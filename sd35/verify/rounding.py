"""What float32 makes of a model, from its depth and the lengths of its sums: rounding, imagined in float64.

A sum of n products is rounded n times, in whatever order a processor takes it. One rounding errs by 0.41 u of
the partial sum (u = 2⁻²⁴ is the most; 0.41 is the standard deviation over all fractions), and partial sums
walk at random to where the sum ends. Together:

    standard deviation of a sum's error = 0.41 u √n · √(sum² / 3 + Σ products² / 6)

as in the probabilistic analysis of Higham & Mary 2019 (SIAM J. Sci. Comput. 41, A2815). Such errors are drawn
for every sum of the model; how they gather over its depth, and how a softmax with large logits and the norms
enlarge them, is seen in what comes out.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

UNIT = 2**-24
OF_A_ROUNDING = 0.41
OF_A_FUNCTION = 0.8
"""Standard deviations in u: of a rounding, and of a function that errs by one unit in the last place."""
DEVIATIONS = 8
"""The largest of some thousand errors is expected at four standard deviations; twice that is allowed."""

FUNCTIONS = frozenset({F.gelu, F.silu, F.layer_norm, torch.sigmoid, torch.rsqrt})
"""Those of a text encoder that libraries of vector functions compute."""


class Rounding(TorchFunctionMode):
    """A `with` block in which a text encoder that runs in float64 errs as one in float32 does."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function of torch, with errors."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        output = func(*args, **kwargs)
        if func is F.linear:
            x, weight = args[:2]
            return self._summed(output, F.linear(x.square(), weight.square()), x.shape[-1])
        return self._moved(output, OF_A_FUNCTION * UNIT * output.abs()) if func in FUNCTIONS else output

    def _moved(self, exact: Tensor, deviation: Tensor) -> Tensor:
        return exact + deviation * torch.randn(exact.shape, generator=self.generator, dtype=exact.dtype)

    def _summed(self, total: Tensor, squares: Tensor, length: int) -> Tensor:
        """Sums of so many products, whose squares sum up to `squares`."""
        walk = (length * (total.square() / 3 + squares / 6)).sqrt()
        return self._moved(total, OF_A_ROUNDING * UNIT * walk)

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        logits = self._summed(q @ k.mT, q.square() @ k.square().mT, q.shape[-1])
        logits = logits * (q.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            logits = logits + attn_mask
        if is_causal:
            logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf)
        share = logits.softmax(dim=-1)
        return self._summed(share @ v, share.square() @ v.square(), v.shape[-2])


def rounding_reach(compute: Callable[[], Mapping[str, Tensor]], draws: int = 8) -> dict[str, float]:
    """How far float32 may lie from float64 at each stage of a computation, relative to its largest magnitude.

    Args:
        compute: gives the stages by name, in float64 and on the CPU.
        draws: how often errors are drawn.
    """
    exact = {name: tensor.clone() for name, tensor in compute().items()}
    squares = {name: torch.zeros_like(tensor) for name, tensor in exact.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        with Rounding(generator):
            for name, tensor in compute().items():
                squares[name] += (tensor - exact[name]).square() / draws
    return {
        name: DEVIATIONS * float(squares[name].max().sqrt() / tensor.abs().max())
        for name, tensor in exact.items()
    }
