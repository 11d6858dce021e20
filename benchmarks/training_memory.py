"""What a training run says it will take of memory, beside what it took: real runs of the command line.

    python benchmarks/training_memory.py                 blocks of medium's width, 3 GB and some minutes
    python benchmarks/training_memory.py --small         the embedded model: whether everything runs

Each row is a process, `sd35 train ... --steps 2`, whose pictures and captions are in the cache already. Its
peak is the most memory of its own (RssAnon: files that are mapped are not in it) from the moment that it says
what it will take, looked at fifty times a second, less that of a process which has loaded everything but the
model. Prints Markdown.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that nothing needs to be installed

import torch
from PIL import Image
from safetensors.torch import save_file

import weights
from mmdit import MMDiT, MMDiTConfig
from sd35.bench.parts import VARIANTS, random_module

ROWS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "LoRA of rank 16": (2, 256, ("lora",)),
    "LoRA, checkpointed": (2, 256, ("lora", "--checkpoint-blocks")),
    "ControlNet of one block": (2, 256, ("controlnet",)),
    "ControlNet, checkpointed": (2, 256, ("controlnet", "--checkpoint-blocks")),
    "all weights": (1, 256, ("full",)),
    "all weights, checkpointed": (1, 256, ("full", "--checkpoint-blocks")),
    "all weights, average": (1, 256, ("full", "--ema", "0.99")),
    "all weights, bfloat16": (1, 256, ("full", "--dtype", "bfloat16")),
    "all weights, Muon, two micro-batches": (1, 256, ("full", "--optimizer", "muon", "--accumulate", "2")),
}
"""Name to blocks, side of the picture, and options."""
SAID = "about"
MODULES = "sd35.cli.train, sd35.train.full, sd35.train.lora, sd35.train.controlnet, torch._dynamo"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="the embedded model in place of wide blocks")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="rows with such a word in them")
    args = parser.parse_args(argv)
    print("| | blocks | pixels | said, GB | peak, GB | said / peak |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (depth, pixels, options) in ROWS.items():
            if args.only and not any(word in name for word in args.only):
                continue
            side = 128 if args.small else pixels
            source = () if args.small else wide_model(Path(folder), depth)
            said, peak = measured(Path(folder), (*options, *source), side)
            blocks = 6 if args.small else depth
            print(f"| {name} | {blocks} | {side} | {said:.2f} | {peak:.2f} | {said / peak:.2f} |", flush=True)
    return 0


def wide_model(folder: Path, depth: int) -> tuple[str, ...]:
    """A model of some of medium's blocks, with random weights, that reads the embedded model's text."""
    path = folder / f"{depth}.safetensors"
    if not path.exists():
        small = weights.load_mmdit("tiny").config
        config: MMDiTConfig = replace(
            VARIANTS["medium"],
            depth=depth,
            pos_embed_size=64,
            context_dim=small.context_dim,
            pooled_dim=small.pooled_dim,
            dual_blocks=tuple(range(depth)),
        )
        model = random_module(lambda: MMDiT(config), torch.device("cpu"), torch.bfloat16)
        save_file({f"model.diffusion_model.{name}": one for name, one in model.state_dict().items()}, path)
    return "--model", str(path), "--vae", "tiny", "--text-encoders", "tiny"


def measured(folder: Path, options: tuple[str, ...], side: int) -> tuple[float, float]:
    """What a run says and takes, in GB of 10⁹ bytes."""
    pictures = folder / f"pictures-{side}"
    if not pictures.exists():
        pictures.mkdir()
        Image.new("RGB", (side, side), "red").save(pictures / "red.png")
        (pictures / "red.txt").write_text("a red circle")
    given = ["--data", str(pictures), "--resolution", str(side), "--device", "cpu", "--caption-dropout", "0"]
    control = ("--control-data", str(pictures))
    dtype = ("--dtype", "bfloat16") if "bfloat16" in options else ()
    cache = folder / f"cache-{side}{''.join(dtype)}"
    if not cache.exists():  # filled by the embedded model, whose encoders all rows have
        train(folder, "controlnet", *control, "--cache", str(cache), "--steps", "1", *dtype, *given)
    more = control if "controlnet" in options else ()
    peak, told = train(folder, *options, *more, "--cache", str(cache), "--steps", "2", *given)
    base, _ = ran([sys.executable, "-c", f"import {MODULES}"])
    said = re.search(rf"{SAID} ([\d.]+) GB", told)
    assert said is not None, told
    return float(said[1]), peak - base


def train(folder: Path, *options: str) -> tuple[float, str]:
    """Run the command into a new folder."""
    output = tempfile.mkdtemp(dir=folder)
    return ran([sys.executable, "-m", "sd35", "train", *options, "--output", output], SAID)


def ran(command: list[str], until: str = "") -> tuple[float, str]:
    """The peak of a process's memory in GB from the moment that it says something, and all that it said."""
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    peak = 0
    with tempfile.NamedTemporaryFile("w+") as told:
        process = subprocess.Popen(command, env=environment, stderr=told, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            begun = until in Path(told.name).read_text()
            peak = max(peak, int(found[1]) if found and begun else 0)
            time.sleep(0.02)
        told.seek(0)
        text = told.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{text}")
    return peak * 1024 / 1e9, text


if __name__ == "__main__":
    sys.exit(main())
