"""What weights in few bits cost: in the velocity, in the picture, and in undoing it; on a model of yours.

    python benchmarks/few_bits.py                       the embedded model, 32 prompts, as Markdown
    python benchmarks/few_bits.py --model SOURCE --prompts 8 --device cuda
    python benchmarks/few_bits.py --prompts 8 --formats bfloat16 products     these rows alone

Each format is put in the place of the linear layers of the transformer's blocks, everything else being the
same. `bfloat16` is the model in that dtype, and `products` the same with the products of its blocks in fp8,
as `sd35.load(fp8=True)` takes them on a card. `velocity` is the relative error at the states of the
unrounded run; `picture` the mean absolute difference of 8-bit pixels from the unrounded pictures, and
`pixels off` the share of those that differ by more than 8 of 255; `noise undone` the PSNR of the noise that
the naive inverse of 28 steps finds, a mean over the prompts.
GGUF's kinds need the gguf package, which does the rounding.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sd35
from flow import closeness
from sd35.adapters.fp8 import use_fp8
from sd35.adapters.swap import Swap
from sd35.tiny.captions import held_out_prompts
from weights.load_into import linear_weights
from weights.packed.linear import PackedLinear
from weights.packed.value import Packed
from weights.packed.write import TARGETS, rounded

GGUF = ("Q8_0", "Q5_1", "Q4_1", "Q4_0")
"""The kinds whose blocks divide every row of the embedded model."""


TOGETHER = 8
"""Pictures that are drawn in one batch."""


def main() -> None:
    """Print the table."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--formats", nargs="+", metavar="NAME", help="these rows alone")
    args = parser.parse_args()
    pipe = sd35.load(args.model, args.device)
    prompts = held_out_prompts(args.prompts, shapes=2, seed=1)
    exact = measure(pipe, prompts, None)
    print("| format | bits | velocity | picture, levels | pixels off | noise undone, dB |")
    print("|---|---|---|---|---|---|")
    print(row("unrounded", 8 * pipe.mmdit.pos_embed.element_size(), exact, exact))
    for name, pack in formats():
        if args.formats is None or name in args.formats:
            with rounded_by(pipe, pack) as bits:
                print(row(name, bits, measure(pipe, prompts, exact), exact), flush=True)
    half = sd35.load(args.model, args.device, torch.bfloat16)
    for name, bits in {"bfloat16": 16, "products": 8}.items():
        if args.formats is None or name in args.formats:
            if name == "products":
                use_fp8(half.mmdit)
            print(row(name, bits, measure(half, prompts, exact), exact), flush=True)


@contextmanager
def rounded_by(pipe: sd35.Pipeline, pack: Callable[[Tensor], Packed]) -> Iterator[float]:
    """The linear layers of the blocks in a format for the length of a block, which is given bits a number."""
    paths = [key.removesuffix(".weight") for key in linear_weights(pipe.mmdit)]
    with Swap(pipe.mmdit, dict.fromkeys(paths, maker(pack))):
        few = [layer for layer in pipe.mmdit.modules() if isinstance(layer, PackedLinear)]
        numbers = sum(layer.in_features * layer.out_features for layer in few)
        yield 8 * sum(layer.packed.nbytes for layer in few) / numbers


def formats() -> Iterator[tuple[str, Callable[[Tensor], Packed]]]:
    """Name to what rounds a weight."""
    for to in TARGETS:
        yield to, lambda weight, to=to: rounded(weight, to)
    try:
        import gguf
    except ImportError:
        return
    for kind in GGUF:

        def pack(weight: Tensor, kind: str = kind) -> Packed:
            blocks = gguf.quants.quantize(weight.float().cpu().numpy(), gguf.GGMLQuantizationType[kind])
            return Packed(kind, torch.from_numpy(blocks), tuple(weight.shape))

        yield f"GGUF {kind}", pack


def maker(pack: Callable[[Tensor], Packed]) -> Callable[[nn.Module], nn.Module]:
    """What makes the layer in few bits from the one that stands there."""

    def make(base: nn.Module) -> nn.Module:
        assert isinstance(base, nn.Linear)
        layer = PackedLinear(pack(base.weight), bias=base.bias is not None)
        layer.bias = base.bias
        return layer.to(base.weight.device)

    return make


@dataclass(frozen=True)
class Measured:
    """What one format gave."""

    drawn: sd35.Result
    velocity: Tensor  # at the states of the unrounded run, end to end
    undone: Tensor  # dB, of each prompt


@torch.no_grad()
def measure(pipe: sd35.Pipeline, prompts: list[str], exact: Measured | None) -> Measured:
    """Draw every prompt, ask for velocities at the states of the unrounded run, and undo the latents."""
    drawn = pipe.generate(prompts, seed=0, batch_size=TOGETHER)
    true = drawn if exact is None else exact.drawn
    velocity = pipe.velocity(prompts, batch_size=TOGETHER)
    velocities = []
    for sigma in (0.9, 0.5, 0.1):
        x = ((1 - sigma) * true.latents + sigma * true.noise).to(pipe.device)
        velocities.append(velocity(x, torch.full((len(x),), sigma, device=pipe.device)).flatten())
    found = pipe.invert(drawn.state(), method="naive").noise.cpu()
    pairs = zip(found.split(1), drawn.noise.split(1), strict=True)
    undone = torch.tensor([float(closeness(noise, own).psnr) for noise, own in pairs])
    return Measured(drawn, torch.cat(velocities).double(), undone)


def row(name: str, bits: float, found: Measured, exact: Measured) -> str:
    """One line of the table."""
    error = float((found.velocity - exact.velocity).norm() / exact.velocity.norm())
    images, expected = (each.drawn.image.clamp(-1, 1) for each in (found, exact))
    levels = 127.5 * (images - expected).abs()
    off = float((levels.amax(dim=1) > 8).float().mean())
    cells = (name, f"{bits:.3g}", f"{error:.1e}", f"{float(levels.mean()):.2f}", f"{off:.1%}")
    return f"| {' | '.join(cells)} | {float(found.undone.mean()):.1f} |"


if __name__ == "__main__":
    main()
