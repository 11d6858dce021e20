"""What a training run says it will take of memory, beside what it took: runs of the command line.

    python benchmarks/training_memory.py                    the embedded model, and wider random ones
    python benchmarks/training_memory.py --only tiny LoRA   rows with these words in them

Each row is `sd35 train ... --steps 3` in a process of its own, forked from one that has imported everything,
whose pictures and captions are in the cache already. Its peak is the most memory of its own (RssAnon: files
that are mapped are not in it) from the moment that it says what it will take, looked at a hundred times a
second, less that of the process that it was forked from. Linux; prints Markdown.
"""

import argparse
import importlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that nothing needs to be installed

import torch
from PIL import Image
from safetensors.torch import save_file

import weights
from mmdit import MMDiT, MMDiTConfig
from sd35.bench.parts import VARIANTS, random_module
from sd35.cli.entry import main as sd35

BATCH = 2
WIDTHS = {512: 4}
"""Channels of the wider models, and their blocks."""
MODULES = ("cli.train", "train.full", "train.lora", "train.dreambooth", "train.controlnet", "train.vae")
SAID = "about"
WAYS: dict[str, tuple[str, ...]] = {
    "LoRA of rank 16": ("lora", "--target", "blocks"),
    "DreamBooth": ("dreambooth", "--class-prompt", "a blue square", "--class-pictures", "1"),
    "all weights": ("full",),
    "ControlNet": ("controlnet",),
    "autoencoder": ("vae", "--no-decoder-only"),
}
MORE: dict[str, tuple[str, ...]] = {
    "all weights, average": ("full", "--ema", "0.99"),
    "all weights, Muon, two micro-batches": ("full", "--optimizer", "muon", "--accumulate", "2"),
}
CHECKPOINTED = ("--checkpoint-blocks",)
"""Of every way but the autoencoder's, whose blocks are not computed again."""


def rows() -> list[tuple[str, int, tuple[str, ...]]]:
    """Name, channels of the model (0 is the embedded one) and options of each row."""
    found: list[tuple[str, int, tuple[str, ...]]] = []
    for width, (name, options), dtype in product((0, *WIDTHS), WAYS.items(), ("float32", "bfloat16")):
        model = f"{width} wide" if width else "tiny"
        own = (*options, "--dtype", dtype)
        if name != "autoencoder" or not width:  # it has one width here, the embedded model's
            found.append((f"{model}, {dtype}, {name}", width, own))
        if dtype == "bfloat16" and name != "autoencoder":
            found.append((f"{model}, {dtype}, {name}, checkpointed", width, (*own, *CHECKPOINTED)))
    more = [(f"512 wide, float32, {name}", 512, (*one, "--dtype", "float32")) for name, one in MORE.items()]
    return found + more


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="rows with these in them")
    args = parser.parse_args(argv)
    for name in MODULES:
        importlib.import_module(f"sd35.{name}")
    importlib.import_module("torch._dynamo")  # what an optimizer imports when it is made
    torch.set_num_threads(1)
    print("| | said, GB | peak, GB | said / peak |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, width, options in rows():
            if all(word in name for word in args.only):
                said, peak = measured(Path(folder), width, options)
                print(f"| {name} | {said:.3f} | {peak:.3f} | {said / peak:.2f} |", flush=True)
    return 0


def wide_model(folder: Path, width: int) -> Path:
    """A model as wide, with random weights, that reads the embedded model's text and draws its latents."""
    path = folder / f"{width}.safetensors"
    if not path.exists():
        small = weights.load_mmdit("tiny").config
        config: MMDiTConfig = replace(
            VARIANTS["medium"],
            dim=width,
            num_heads=width // 64,
            depth=WIDTHS[width],
            pos_embed_size=64,
            context_dim=small.context_dim,
            pooled_dim=small.pooled_dim,
            dual_blocks=tuple(range(WIDTHS[width])),
        )
        model = random_module(lambda: MMDiT(config), torch.device("cpu"), torch.bfloat16)
        save_file({f"model.diffusion_model.{name}": one for name, one in model.state_dict().items()}, path)
    return path


def measured(folder: Path, width: int, options: tuple[str, ...]) -> tuple[float, float]:
    """What a run says and takes, in GB of 10⁹ bytes."""
    side = 256 if width else 128
    pictures, kept = folder / f"pictures-{side}", folder / f"class-{side}"
    for place, words in ((pictures, "a red circle"), (kept, "a blue square")):
        if not place.exists():
            place.mkdir()
            for number in range(BATCH):
                Image.new("RGB", (side, side), (255, number, 0)).save(place / f"{number:05}.png")
                (place / f"{number:05}.txt").write_text(words)
    given = ["--data", str(pictures), "--resolution", str(side), "--device", "cpu"]
    given += ["--batch-size", str(BATCH), "--steps", "3"]
    source: tuple[str, ...] = ()
    if width:
        forked(lambda: wide_model(folder, width), folder)
        source = ("--model", str(folder / f"{width}.safetensors"), "--vae", "tiny", "--text-encoders", "tiny")
    more = {"controlnet": ("--control-data", str(pictures)), "dreambooth": ("--class-data", str(kept))}
    command = ["train", *options, *more.get(options[0], ()), *source, *given]

    def run(*other: str) -> None:
        if sd35([*command, *other, "-o", tempfile.mkdtemp(dir=folder)]):
            raise SystemExit(1)

    if options[0] != "vae":
        command += ["--cache", str(folder / f"cache-{width}-{options[options.index('--dtype') + 1]}")]
        forked(lambda: run("--steps", "1"), folder)
    taken, told = forked(run, folder)
    said = re.search(rf"{SAID} ([\d.]+) GB", told)
    if said is None:
        raise SystemExit(f"{' '.join(command)} said nothing of memory:\n{told}")
    return float(said[1]), taken


def forked(work: Callable[[], object], folder: Path) -> tuple[float, str]:
    """Do something in a process of its own, so that none leaves anything behind in memory for the next.

    Returns:
        The peak of its memory in GB above that of this process, once it has said what it will take; and all
        that it said.
    """
    told = Path(tempfile.mkstemp(dir=folder)[1])
    base = own_memory(os.getpid())
    child = os.fork()
    if child == 0:
        for stream, place in ((1, os.devnull), (2, told)):
            os.dup2(os.open(place, os.O_WRONLY), stream)
        try:
            work()
        except BaseException as error:  # the process that was forked may not go on into the parent's work
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    peak = 0
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if SAID in told.read_text():
            peak = max(peak, own_memory(child))
        time.sleep(0.01)
    if ended[1]:
        raise SystemExit(f"a run failed:\n{told.read_text()}")
    return (peak - base) / 1e9, told.read_text()


def own_memory(process: int) -> int:
    """Bytes of memory of a process's own, 0 of one that has ended."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    sys.exit(main())
