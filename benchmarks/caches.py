"""What step caches leave out of the transformer, and how near the picture stays to that without a cache.

    python benchmarks/caches.py                     8 prompts, 28 steps, guidance 4.5, the reference's table

Tables: `reuse` (ways of using a velocity again, the same steps computed), `drawn` (every cache, under
guidance alone, with skip-layer guidance, with an outline that steers). `computed` is what ran of the
transformer's blocks, in steps: a hit of `block` costs one block, and finding out that it is none one more.
PSNR is of the latents, over their range. Prints Markdown.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from outline import Case
from rows import show

import flow
import sd35
from sd35.device import as_device
from sd35.noise import draw_noise, generators
from sd35.tasks.generate import Generate, Generation
from sd35.tiny.captions import held_out_in_turn, held_out_prompts

TABLES = ("reuse", "drawn")
REUSES = ("residual", "last", "line", "curve")
CACHES: dict[str, dict[str, Any]] = {
    "velocity, 0.05": {"cache": "velocity"},
    "velocity, 0.1": {"cache": "velocity", "cache_threshold": 0.1},
    "velocity, 0.2": {"cache": "velocity", "cache_threshold": 0.2},
    "block, 0.05": {"cache": "block", "cache_threshold": 0.05},
    "block, 0.1": {"cache": "block"},
    "block, 0.2": {"cache": "block", "cache_threshold": 0.2},
}
UNDER: dict[str, dict[str, Any]] = {
    "guidance": {},
    "skip-layer guidance": {"guidance": {"skip_layer": flow.SkipLayer(2.5, 0.01, 0.5, (2, 3))}},
    "an outline": {"control": True},
}


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw with and without, compare, print."""
    args = arguments().parse_args(argv)
    pipe = sd35.load(args.model, as_device(args.device), torch.float32)
    prompts = held_out_in_turn(args.prompts, seed=1)
    chosen = chosen_steps(pipe, args)
    if "reuse" in args.tables:
        reuse_table(pipe, prompts, chosen, args)
    if "drawn" in args.tables:
        drawn_table(pipe, prompts, chosen, args)


def chosen_steps(pipe: sd35.Pipeline, args: argparse.Namespace) -> dict[int, tuple[int, ...]]:
    """For each budget, the steps that are best computed, found on two prompts that are not judged."""
    prompts = held_out_prompts(2, shapes=2, seed=3)
    velocity = pipe.velocity(prompts, guidance_scale=args.guidance_scale, batch_size=2)
    noise = draw_noise(generators([2000, 2001]), pipe.latents_shape(None, None)).to(pipe.device)
    found = {}
    for budget in args.budgets:
        found[budget] = flow.choose_steps(
            velocity, noise, flow.sigmas(args.steps), budget, rounds=args.rounds
        )
        print(f"{budget} of {args.steps} steps: {' '.join(map(str, found[budget]))}\n", flush=True)
    return found


def reuse_table(
    pipe: sd35.Pipeline, prompts: list[str], chosen: dict[int, tuple[int, ...]], args: argparse.Namespace
) -> None:
    """Print how near each way of using a velocity again stays, of the same steps computed."""
    table = flow.sigmas(args.steps)
    noise = draw_noise(generators(range(len(prompts))), pipe.latents_shape(None, None)).to(pipe.device)
    velocity = pipe.velocity(prompts, guidance_scale=args.guidance_scale, batch_size=args.batch_size)
    true = flow.solve(velocity, noise, table)
    print(f"\n## Used again, {len(prompts)} prompts, median PSNR in dB to the run without a cache\n")
    rows = []
    for budget, best in chosen.items():
        even = tuple(sorted({round((args.steps - 1) * i / (budget - 1)) for i in range(budget)}))
        for name, steps in {"even": even, "chosen": best}.items():
            cells = [f"{budget} of {args.steps}, {name}"]
            for reuse in REUSES:
                end = flow.solve(flow.Cached(velocity, table, steps=steps, reuse=reuse), noise, table)
                cells.append(f"{flow.closeness(end, true).psnr.median():.1f}")
            rows.append(cells)
    show(["steps computed", *REUSES], rows)


def drawn_table(
    pipe: sd35.Pipeline, prompts: list[str], chosen: dict[int, tuple[int, ...]], args: argparse.Namespace
) -> None:
    """Print what every cache saves and costs, under everything that a cache may spoil."""
    print(f"\n## Drawn with a cache, {len(prompts)} prompts, {args.steps} steps, PSNR in dB\n")
    caches = CACHES | {f"{budget} chosen steps": {"cache": steps} for budget, steps in chosen.items()}
    rows: dict[str, list[str]] = {name: [name] for name in caches}
    for options in UNDER.values():
        given: dict[str, Any] = dict(options) | {"steps": args.steps, "guidance_scale": args.guidance_scale}
        if given.pop("control", False):
            drawings = [Case("", "star", 0.0, 0.0, 0.5).drawing()] * len(prompts)
            given["control"] = sd35.Control("outline", drawings, "raw")
        true, _ = draw(pipe, prompts, given)
        for name, cache in caches.items():
            found, share = draw(pipe, prompts, given | cache)
            own = flow.closeness(found, true).psnr
            rows[name] += [f"{share * args.steps:.1f}", f"{own.min():.1f}", f"{own.median():.1f}"]
    heads = [f"{under}: {head}" for under in UNDER for head in ("computed", "least", "median")]
    show(["cache", *heads], list(rows.values()))


def draw(pipe: sd35.Pipeline, prompts: list[str], given: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """The latents, and the share of the transformer's blocks that were run."""
    depth, ran = pipe.mmdit.config.depth, [0, 0]

    def count(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        left_out = len(kwargs.get("skip_layers") or ())
        ran[0] += (depth - left_out) * len(args[0])

    handle = pipe.mmdit.register_forward_hook(count, with_kwargs=True)
    try:
        generation = Generation(pipe, Generate.of(prompts, dict(given)))
        latents = generation.run().latents
    finally:
        handle.remove()
    full = full_blocks(pipe, generation)
    return latents, ran[0] / full


def full_blocks(pipe: sd35.Pipeline, generation: Generation) -> float:
    """Blocks that are run without a cache: two branches a step, and one without its layers where skipping."""
    settings, depth = generation.settings, pipe.mmdit.config.depth
    branches = 1 if settings.guidance_scale == 1 else 2
    total = branches * depth * len(generation)
    if (skip := settings.guidance.skip_layer) is not None:
        total += len(skip.steps(settings.steps)) * (depth - len(skip.layers))
    return total * settings.images


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance-scale", "--cfg", type=float, default=4.5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--budgets", type=int, nargs="+", default=[14, 10])
    parser.add_argument("--rounds", type=int, default=1, help="of choosing the steps for a budget")
    return parser


if __name__ == "__main__":
    main()
