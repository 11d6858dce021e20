"""Whether a device computes what it should: stored activations, a picture, an exact way back, the tests."""

import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_models import SMALL
from gpu_report import seconds
from gpu_rows import Bench, joined

import sd35
from sd35.cli import main as command

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a red circle"


def verify(bench: Bench) -> None:
    """`sd35 verify` in each dtype; its tables go into a file."""
    for dtype in ("float32",) if bench.sizes is SMALL else ("float32", "bfloat16", "float16"):
        printed, begin = io.StringIO(), time.perf_counter()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = command(["verify", "--device", str(bench.device), "--dtype", dtype])
        lines = printed.getvalue().strip().splitlines()
        bench.report.text("verify.txt", printed.getvalue())
        failed = [line.strip() for line in lines if "FAIL" in line]
        first = "".join(f"; {' '.join(line.split())}" for line in failed[:4])
        remark = f"status {status}: {lines[-1]}{first}"
        took = time.perf_counter() - begin
        bench.report.add(f"verify, {dtype}", remark=remark, status=status, seconds=took, failed=failed)


def drawing(bench: Bench) -> None:
    """Pictures of the embedded model here and on the CPU, and generations undone."""
    steps: dict[str, Any] = {"seed": 0, "steps": bench.sizes.steps}
    here = sd35.load("tiny", "cpu", torch.float32).generate(PROMPT, **steps)
    begin = time.perf_counter()
    pipe = sd35.load("tiny", bench.device, torch.float32)
    there = pipe.generate(PROMPT, **steps)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    again = pipe.generate(PROMPT, **steps)
    second = time.perf_counter() - begin
    repeats = "repeats its bits" if torch.equal(there.latents, again.latents) else "DOES NOT repeat its bits"
    took = f"{seconds(first)} with loading, then {seconds(second)}"
    compared(bench, f"tiny, float32, {bench.sizes.steps} steps", there, here, repeats, took)
    if bench.is_cuda:
        for dtype in (torch.bfloat16, torch.float16):
            half = sd35.load("tiny", bench.device, dtype).generate(PROMPT, **steps)
            compared(bench, f"tiny, {str(dtype).removeprefix('torch.')}", half, here)
    exact = pipe.generate(PROMPT, solver="bitexact", **steps)
    found = pipe.invert(exact.state(), measure=False)
    equal = torch.equal(found.noise.cpu(), exact.noise.cpu())
    remark = "noise found to the last bit" if equal else "noise NOT found to the last bit"
    bench.report.add("tiny, bitexact there and back, float32", remark=remark, equal=equal)
    if bench.sizes is not SMALL:  # few steps fold, and are long searched for
        exact_inverse(bench, pipe, there)


def exact_inverse(bench: Bench, pipe: sd35.Pipeline, drawn: sd35.Result) -> None:
    """The noise of a picture that Euler's method drew, by the exact inverse."""
    begin = time.perf_counter()
    found = pipe.invert(drawn.state())
    remark = joined(
        ", ".join(f"{name} {one.total_psnr:.1f} dB" for name, one in found.losses.items()),
        f"{found.report.evaluations} evaluations",
        seconds(time.perf_counter() - begin),
        *found.notes[:2],
    )
    bench.report.add("tiny, exact inverse of Euler, float32", remark=remark)


def compared(bench: Bench, name: str, there: Any, here: Any, *remarks: str) -> None:
    """A row that says how far a result is from the CPU's in float32."""
    ours, theirs = (np.asarray(result.images[0], dtype=np.float64) for result in (there, here))
    mse = float(np.mean((ours - theirs) ** 2))
    psnr = f"picture {10 * np.log10(255**2 / mse):.1f} dB" if mse else "picture equal"
    error = float((there.latents - here.latents).norm() / here.latents.norm())
    remark = joined(psnr, f"latents differ by {error:.1e} from the CPU's", *remarks)
    bench.report.add(name, remark=remark, mse=mse, error=error)


def gpu_tests(bench: Bench) -> None:
    """The tests that need a CUDA device."""
    files = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    limit = max(5.0, bench.left() - 3)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    bench.report.text("tests.txt", done.stdout + done.stderr)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    bench.report.add("tests marked gpu", remark=lines[-1] if lines else "nothing printed")
