"""Measure how long the stages take on this machine: the median of several runs, after one to warm up."""

import argparse
import time
from collections.abc import Callable
from statistics import median

from .model import add_model, load_pipeline

SUMMARY = "measure how long the stages take here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument("--repeats", type=int, default=5, help="runs of each stage (default 5)")
    parser.add_argument("--width", type=int, help="in pixels; the model's own size by default")
    parser.add_argument("--height", type=int, help="likewise")
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Print one line for each stage."""
    import torch

    from textenc.prompt import as_prompts

    from ..errors import SettingsError
    from ..settings import Settings

    if args.repeats < 1:
        raise SettingsError(f"--repeats must be at least 1, got {args.repeats}")
    prompt = "a red circle above a blue square on a white background"
    asked = Settings(prompts=as_prompts(prompt), width=args.width, height=args.height)
    pipe = load_pipeline(args, asked)
    settings = pipe.complete(asked)
    generator = torch.Generator().manual_seed(0)
    shape = pipe.latents_shape(settings.width, settings.height)
    latents = torch.randn(1, *shape, generator=generator).to(pipe.device)
    sigma = torch.full((1,), 0.5, device=pipe.device)
    image = pipe.decode(latents).clamp(-1, 1)
    guided, plain = pipe.velocity(prompt), pipe.velocity(prompt, guidance_scale=1)
    stages: dict[str, Callable[[], object]] = {
        "encode a prompt": lambda: pipe.encode_prompt(prompt),
        "a step, guided": lambda: guided(latents, sigma),
        "a step, guidance 1": lambda: plain(latents, sigma),
        "decode latents": lambda: pipe.decode(latents),
        "encode a picture": lambda: pipe.encode(image),
    }
    made = settings.made_with
    print(
        f"{pipe.model} at {settings.width} x {settings.height}, {made['dtype']} on {made['device']}, "
        f"torch {made['torch']}, {torch.get_num_threads()} threads; median of {args.repeats}"
    )
    for name, stage in stages.items():
        print(f"  {name:<20}{seconds(stage, args.repeats, pipe.device.type):>10.4f} s")
    return 0


def seconds(stage: Callable[[], object], repeats: int, device: str) -> float:
    """The median time of a stage; what the device still has to do is waited for."""
    import torch

    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        stage()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return median(times[1:])
