"""Measure how fast the parts are on this machine, against what it can do and against another implementation.

Without --model, random weights of SD3.5's own sizes are measured, which needs no download. Every stage is run
once to warm up, once for its memory and then --repeats times, in turn with the other implementation where
there is one: medians, and lowest to highest. Short stages run up to --repeats times as often. On a CPU the
ratio and the share of the ceiling are of processor time, since machines are shared; elsewhere of wall-clock
time. The ceiling is a large matrix product.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..bench import Parts

SUMMARY = "measure how fast the parts are here"
ONLY = ("transformer", "python", "vae", "text", "load", "import")
BLOCKS = 4
"""Of parts with random weights, where nothing else is said."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument(
        "-m", "--model", metavar="SOURCE", help="tiny, a file, a folder or owner/name; else random weights"
    )
    parser.add_argument("--sizes", help="of random weights: medium (the default) or large")
    parser.add_argument(
        "--blocks", type=int, help="that a part with random weights has at most (default 4); 0 is all"
    )
    parser.add_argument(
        "--pixels", type=int, nargs="+", help="sides of pictures; default 256 512, or the model's own"
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of a long stage (default 5)")
    parser.add_argument(
        "--against", metavar="NAME", help="diffusers, or a file like benchmarks/diffusers_peer.py"
    )
    parser.add_argument("--only", nargs="+", choices=ONLY, help="these stages alone")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto (the default)")
    parser.add_argument("--dtype", help="float32, bfloat16 (the default of random weights) or float16")


def run(args: argparse.Namespace) -> int:
    """Print what is measured and where, and the table as it grows."""
    import torch

    from ..bench import as_row, find_ceilings, header, load_peer, run_stages

    _check(args)
    peer = load_peer(args.against) if args.against else None
    parts = _parts(args)
    ceilings = find_ceilings(parts.device, parts.dtype)
    name = str(parts.dtype).removeprefix("torch.")
    threads = torch.get_num_threads()
    print(f"{parts.name}, {name} on {parts.device}, torch {torch.__version__}, threads: {threads}")
    if peer is not None:
        print(f"beside {peer.NAME}, with random weights of the same sizes")
    print(f"ceilings: product {ceilings.flops / 1e9:.0f} GFLOP/s, copy {ceilings.bytes / 1e9:.1f} GB/s\n")
    print(header(beside=peer is not None))
    for measured in run_stages(parts, args.repeats, peer, args.only or ()):
        print(as_row(measured, ceilings), flush=True)
    return 0


def _check(args: argparse.Namespace) -> None:
    from ..errors import SettingsError

    if args.repeats < 1:
        raise SettingsError(f"--repeats must be at least 1, got {args.repeats}")
    if args.pixels and any(side < 16 or side % 16 for side in args.pixels):
        raise SettingsError(f"--pixels must be multiples of 16, got {' '.join(map(str, args.pixels))}")
    if args.model is not None and (args.sizes is not None or args.blocks is not None):
        raise SettingsError("--sizes and --blocks are of random weights: leave them out, or --model")


def _parts(args: argparse.Namespace) -> "Parts":
    """The models that the arguments mean."""
    import torch

    from ..bench import of_source, of_variant
    from ..device import as_device, as_dtype

    device, dtype = as_device(args.device), as_dtype(args.dtype)
    pixels = tuple(sorted(args.pixels)) if args.pixels else None
    if args.model is not None:
        return of_source(args.model, device, dtype, pixels)
    blocks = BLOCKS if args.blocks is None else args.blocks or None
    dtype = dtype or torch.bfloat16
    return of_variant(args.sizes or "medium", device, dtype, pixels or (256, 512), blocks)
