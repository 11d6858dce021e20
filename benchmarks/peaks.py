"""How much memory each part of SD3.5 needs, computed without running it: nothing is allocated, only counted.

    python benchmarks/peaks.py --pixels 512 1024 --dtype bfloat16

Every part is built and called on torch's meta device, and the tensors that are alive at once are summed after
every operator. Attention is taken for one operator, as it is where a fused kernel fits. What kernels take for
themselves (workspaces of convolutions) and what an allocator loses between tensors is not in it, so a device
needs somewhat more. Prints Markdown.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sd35.bench import of_variant
from sd35.bench.stages import TOKENS

META = torch.device("meta")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that were made within it and are still held, after every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and look at what is held then."""
        given = {id_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        self._held = {key: one for key, one in self._held.items() if not one[0].expired()}
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and id_of(leaf) not in given:
                storage = leaf.untyped_storage()
                self._held[id_of(leaf)] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return out


def id_of(tensor: torch.Tensor) -> int:
    """Of the memory that a tensor looks at, not of the tensor."""
    return tensor.untyped_storage()._cdata


class FusedAttention(TorchFunctionMode):
    """Answers attention with an output alone: the meta device would make the whole matrix of its weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run any other function."""
        if func is F.scaled_dot_product_attention:
            q, _, v, *_ = args
            return q.new_empty(*q.shape[:-1], v.shape[-1])
        return func(*args, **(kwargs or {}))


def beyond(run: Callable[[], object]) -> float:
    """GB that a call holds at most beyond what it was given."""
    with Alive() as alive, FusedAttention():
        run()
    return alive.peak / 1e9


def weights(module: nn.Module) -> float:
    """GB of a module's weights."""
    return sum(tensor.nbytes for tensor in module.state_dict().values()) / 1e9


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Count and print."""
    args = arguments().parse_args(argv)
    print("| part | weights, GB | " + " | ".join(f"and at {side} px, GB" for side in args.pixels) + " |")
    print("|---" * (2 + len(args.pixels)) + "|")
    for variant in ("medium", "large"):
        show(f"transformer, {variant}, guided step", variant, args)
    show("VAE, decode", "vae", args)
    show("VAE, encode", "vae", args)
    for name, make in of_variant("medium", META, DTYPES[args.dtype], (256,)).encoders.items():
        module = make()
        ids = torch.zeros(2, TOKENS // 2, dtype=torch.int64, device=META)
        peak = f"{beyond(lambda: module(ids)):.2f}"  # noqa: B023
        print(
            f"| {name}, 2 prompts | {weights(module):.2f} | " + " | ".join([peak] * len(args.pixels)) + " |"
        )


def show(name: str, what: str, args: argparse.Namespace) -> None:
    """Print a line."""
    parts = of_variant("medium" if what == "vae" else what, META, DTYPES[args.dtype], (256,))
    model = parts.vae() if what == "vae" else parts.mmdit()
    cells = [f"{beyond(call(name, model, side)):.2f}" for side in args.pixels]
    print(f"| {name} | {weights(model):.2f} | " + " | ".join(cells) + " |", flush=True)


def call(name: str, model: Any, side: int) -> Callable[[], object]:
    """A call of a part for a picture of that side."""
    if name == "VAE, decode":
        latents = torch.empty(1, 16, side // 8, side // 8, device=META)
        return lambda: model.decode(latents)
    if name == "VAE, encode":
        image = torch.empty(1, 3, side, side, device=META)
        return lambda: model.encode(image)
    latents = torch.empty(2, 16, side // 8, side // 8, device=META)
    context = torch.empty(2, TOKENS, model.config.context_dim, device=META)
    pooled = torch.empty(2, model.config.pooled_dim, device=META)
    return lambda: model(latents, torch.empty(2, device=META), context, pooled)


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pixels", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    return parser


if __name__ == "__main__":
    main()
