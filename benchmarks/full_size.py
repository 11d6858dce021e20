"""SD3.5-medium's real dimensions on this machine: how long loading takes, what it holds, what a step costs.

    python benchmarks/full_size.py --folder /tmp/full-size

Writes a checkpoint of random bfloat16 weights with the names and shapes of sd3.5_medium.safetensors
(5.1 GB; kept in the folder for the next run), then loads it in a new process and runs the transformer
once, guidance not counted. Memory is the process's own, as Linux counts it.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

FILE = "sd3.5_medium.safetensors"


def write_checkpoint(path: Path) -> None:
    """Write random weights of SD3.5-medium and its autoencoder, with the official names."""
    import torch
    from safetensors.torch import save_file

    from mmdit import MMDiT, MMDiTConfig
    from vae import VAE, VAEConfig

    config = MMDiTConfig(
        dim=1536, depth=24, num_heads=24, pos_embed_size=384, dual_blocks=tuple(range(13)), qk_norm=True
    )
    with torch.device("meta"):
        parts = {
            "model.diffusion_model.": MMDiT(config),
            "first_stage_model.": VAE(VAEConfig((128, 256, 512, 512), 2, 16)),
        }
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for prefix, module in parts.items():
        for name, like in module.state_dict().items():
            values = torch.empty(like.shape, dtype=torch.bfloat16).uniform_(-0.03, 0.03, generator=generator)
            tensors[prefix + name] = values + 1 if name.endswith(("ln_q.weight", "ln_k.weight")) else values
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def memory() -> dict[str, float]:
    """Resident memory of this process in GB: its own pages, and pages of mapped files."""
    wanted = {"RssAnon": "own", "RssFile": "mapped"}
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {wanted[words[0][:-1]]: int(words[1]) * 1024 / 1e9 for words in lines if words[0][:-1] in wanted}


def measure(path: Path, pixels: int) -> None:
    """Load and run once, and print what it took as JSON. Meant for a process of its own."""
    start = time.perf_counter()
    import torch

    from weights import load_mmdit

    seconds = {"import": time.perf_counter() - start}
    before = memory()
    start = time.perf_counter()
    model = load_mmdit(path)
    seconds["load"] = time.perf_counter() - start
    loaded = memory()

    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, pixels // 8, pixels // 8, generator=generator)
    context, pooled = (
        torch.randn(1, 154, 4096, generator=generator),
        torch.randn(1, 2048, generator=generator),
    )
    with torch.inference_mode():
        for run in ("first forward", "second forward"):
            start = time.perf_counter()
            velocity = model(latents, torch.tensor([0.7]), context, pooled)
            seconds[run] = time.perf_counter() - start
    report = {
        "seconds": seconds,
        "GB before loading": before,
        "GB loaded": loaded,
        "GB after two forwards": memory(),
        "GB of weights": sum(p.numel() * p.element_size() for p in model.state_dict().values()) / 1e9,
        "dtype": str(next(model.parameters()).dtype),
        "velocity is finite": bool(velocity.isfinite().all()),
        "velocity rms": float(velocity.float().square().mean().sqrt()),
    }
    print(json.dumps(report, indent=1))


def main() -> None:
    """Write the checkpoint where it is missing and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is kept")
    parser.add_argument("--pixels", type=int, default=512, help="side of the picture (default 512)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path = arguments.folder / FILE
    if arguments.measure:
        measure(path, arguments.pixels)
        return
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        write_checkpoint(path)
    command = [sys.executable, __file__, "--measure"]
    subprocess.run(
        [*command, "--folder", str(arguments.folder), "--pixels", str(arguments.pixels)], check=True
    )


if __name__ == "__main__":
    main()
