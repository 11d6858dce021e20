"""SD3.5-medium's real dimensions on this machine: what loading takes, what it holds, what a forward costs.

    python benchmarks/full_size.py --folder /tmp/full-size
    python benchmarks/full_size.py --folder /tmp/full-size --formats bf16 fp8 int8 Q8_0 Q5_1 Q4_K Q4_0

Writes a checkpoint of random bfloat16 weights with the names and shapes of sd3.5_medium.safetensors (5.1 GB),
and the transformer in each format beside it, of 1.4 to 2.6 GB; they are kept in the folder for the next run.
Each is loaded in a process of its own, weights in few bits once as they are used and once with `unpack`, and
runs the transformer alone, in bfloat16, for one picture without guidance.

`resident` is the most that the process held until all its forwards were done, pages of the mapped file
counted; `own` what it holds then that is not the file's and cannot be given back. Times are CPU seconds, with
the file in the page cache.
`error` is of the velocity, relative to that of the bfloat16 file at 512 pixels or what --pixels ends with.
GGUF needs the gguf package, which rounds Q8_0 to Q4_0; Q4_K is rounded here, to the nearest, without the
search that llama.cpp makes for better scales.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FILE = "sd3.5_medium.safetensors"
PREFIX = "model.diffusion_model."


def write_checkpoint(path: Path) -> None:
    """Write random weights of SD3.5-medium and its autoencoder, with the official names."""
    import torch
    from safetensors.torch import save_file

    from mmdit import MMDiT
    from sd35.bench.parts import AUTOENCODER, VARIANTS
    from vae import VAE

    with torch.device("meta"):
        parts = {PREFIX: MMDiT(VARIANTS["medium"]), "first_stage_model.": VAE(AUTOENCODER)}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for prefix, module in parts.items():
        for name, like in module.state_dict().items():
            values = torch.empty(like.shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
            tensors[prefix + name] = values + 1 if name.endswith(("ln_q.weight", "ln_k.weight")) else values
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def write_format(path: Path, whole: Path, to: str) -> None:
    """Write the transformer of a checkpoint in few bits, as `sd35 quantise` or ComfyUI-GGUF would."""
    from weights import resolve
    from weights.build import build_component
    from weights.load_into import linear_weights
    from weights.packed.write import TARGETS, rounded, write_packed

    component = resolve(whole, ["mmdit"]).component("mmdit")
    names = linear_weights(build_component(component))
    linear = component.tensors(names)
    rest = component.tensors(tuple(name for name in component.recipes if name not in linear))
    if to in TARGETS:
        packed = {name: rounded(tensor, to) for name, tensor in linear.items()}
        write_packed(path, rest, packed, to, prefix=PREFIX)
    else:
        write_gguf(path, linear, rest, to)


def write_gguf(path: Path, linear: "dict[str, Tensor]", rest: "dict[str, Tensor]", kind: str) -> None:
    """Write matrices in a kind of blocks, vectors in float32 and the rest as it is."""
    import gguf
    import torch

    writer = gguf.GGUFWriter(path, "sd3")
    bf16, of = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType[kind]
    for name, tensor in rest.items():
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor.float().numpy())
        else:
            writer.add_tensor(name, tensor.contiguous().view(torch.uint8).numpy(), raw_dtype=bf16)
    for name, tensor in linear.items():
        weight = tensor.float()
        blocks = q4_k(weight).numpy() if kind == "Q4_K" else gguf.quants.quantize(weight.numpy(), of)
        writer.add_tensor(name, blocks, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def q4_k(weight: "Tensor") -> "Tensor":
    """A weight (rows, columns) in Q4_K, to the nearest: (rows, bytes) uint8."""
    import torch

    groups = weight.reshape(-1, 8, 32)  # a block has 8 groups of 32
    least = groups.amin(dim=2).clamp(max=0)
    scale, minimum = (groups.amax(dim=2) - least) / 15, -least
    halves = [value.amax(dim=1, keepdim=True).div(63).half() for value in (scale, minimum)]
    scale, minimum = (
        (value / half.float().clamp(min=1e-12)).round().clamp(0, 63)  # of 6 bits
        for value, half in zip((scale, minimum), halves, strict=True)
    )
    step, offset = halves[0].float() * scale, halves[1].float() * minimum
    numbers = (groups + offset[:, :, None]) / step.clamp(min=1e-12)[:, :, None]
    numbers = numbers.round().clamp(0, 15).to(torch.uint8).reshape(-1, 4, 2, 32)
    scale, minimum = scale.to(torch.uint8), minimum.to(torch.uint8)
    six = [
        scale[:, :4] | (scale[:, 4:] >> 4 << 6),
        minimum[:, :4] | (minimum[:, 4:] >> 4 << 6),
        (scale[:, 4:] & 15) | ((minimum[:, 4:] & 15) << 4),
    ]
    packed = (numbers[:, :, 0] | (numbers[:, :, 1] << 4)).flatten(1)
    blocks = torch.cat([*(half.view(torch.uint8) for half in halves), *six, packed], dim=1)
    return blocks.view(len(weight), -1)


def memory() -> dict[str, float]:
    """Resident memory of this process in GB: its own pages, those of mapped files, and the most there was."""
    wanted = {"RssAnon": "own", "RssFile": "mapped", "VmHWM": "resident"}
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {wanted[words[0][:-1]]: int(words[1]) * 1024 / 1e9 for words in lines if words[0][:-1] in wanted}


def measure(path: Path, pixels: list[int], *, unpack: bool, output: Path) -> None:
    """Load and run, and print what it took as JSON. Meant for a process of its own."""
    start = time.perf_counter()
    import torch
    from safetensors.torch import save_file

    from weights import load_mmdit

    seconds = {"import": time.perf_counter() - start}
    before = memory()
    start, busy = time.perf_counter(), time.process_time()
    model = load_mmdit(path, unpack=unpack)
    seconds |= {"load": time.perf_counter() - start, "load, CPU": time.process_time() - busy}
    loaded, velocity = memory(), torch.empty(0)
    with torch.inference_mode():
        for name, side in [
            ("first forward", pixels[0]),
            *((f"forward at {side} px", side) for side in pixels),
        ]:
            generator = torch.Generator().manual_seed(1)
            latents = torch.randn(1, 16, side // 8, side // 8, generator=generator)
            context = torch.randn(1, 154, 4096, generator=generator)
            pooled = torch.randn(1, 2048, generator=generator)
            busy = time.process_time()
            velocity = model(latents, torch.tensor([0.7]), context, pooled)
            seconds[f"{name}, CPU"] = time.process_time() - busy
    save_file({"velocity": velocity.float().contiguous()}, output)
    report = {
        "GB of file": path.stat().st_size / 1e9,
        "seconds": seconds,
        "GB before loading": before,
        "GB loaded": loaded,
        "GB after forwards": memory(),
        "GB of weights": sum(one.numel() * one.element_size() for one in model.state_dict().values()) / 1e9,
        "dtype": str(model.dtype),
        "velocity is finite": bool(velocity.isfinite().all()),
        "velocity rms": float(velocity.float().square().mean().sqrt()),
    }
    print(json.dumps(report, indent=1))


def run(path: Path, pixels: list[int], *, unpack: bool = False) -> dict:
    """What `measure` gives in a process of its own, and its velocity."""
    from safetensors.torch import load_file

    output = path.with_suffix(".velocity")
    command = [sys.executable, __file__, "--folder", str(path), "--pixels", *map(str, pixels), "--measure"]
    done = subprocess.run(
        [*command, str(output), *["--unpack"] * unpack], check=True, capture_output=True, text=True
    )
    report = json.loads(done.stdout) | {"velocity": load_file(output)["velocity"].double()}
    output.unlink()
    return report


def compare(folder: Path, formats: list[str], pixels: list[int]) -> None:
    """Print a row for each format, loaded either way."""
    sides = " | ".join(f"forward, {side} px" for side in pixels)
    print(f"| format | file, GB | load, s | resident, GB | own, GB | {sides} | error |")
    print("|---|---|---|---|---|" + "---|" * (len(pixels) + 1))
    exact = run(folder / FILE, pixels)
    for name in formats:
        path = folder / (f"{name}.gguf" if name.startswith("Q") else f"{name}.safetensors")
        whole = name == "bf16"
        if not whole and not path.exists():
            print(f"writing {path}", file=sys.stderr)
            write_format(path, folder / FILE, name)
        for unpack in (False,) if whole else (False, True):
            found = exact if whole else run(path, pixels, unpack=unpack)
            seconds, held = found["seconds"], found["GB after forwards"]
            off = (found["velocity"] - exact["velocity"]).norm() / exact["velocity"].norm()
            cells = [f"{name}, unpacked" if unpack else name, f"{found['GB of file']:.2f}"]
            cells += [f"{seconds['load, CPU']:.2f}", f"{held['resident']:.2f}", f"{held['own']:.2f}"]
            cells += [f"{seconds[f'forward at {side} px, CPU']:.1f}" for side in pixels]
            print(f"| {' | '.join([*cells, f'{float(off):.1e}'])} |", flush=True)


def main() -> None:
    """Write the checkpoint where it is missing and measure."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoints are kept")
    parser.add_argument(
        "--pixels", type=int, nargs="+", default=[256, 512], help="sides of the picture (default 256 512)"
    )
    parser.add_argument(
        "--formats", nargs="+", metavar="NAME", help="compare them: bf16, fp8, int8, Q8_0, ..."
    )
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--unpack", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.folder, args.pixels, unpack=args.unpack, output=args.measure)
        return
    path = args.folder / FILE
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        write_checkpoint(path)
    if args.formats:
        compare(args.folder, args.formats, args.pixels)
    else:
        report = run(path, args.pixels)
        del report["velocity"]
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
