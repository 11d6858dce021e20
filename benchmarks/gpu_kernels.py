"""What the card does at best in products, attention and copies, at large sizes and at the model's."""

import subprocess
from collections.abc import Callable

import torch
import torch.nn.functional as F
from gpu_report import seconds
from gpu_rows import Bench
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sd35.bench.stages import TOKENS

FP8 = torch.float8_e4m3fn


def facts(bench: Bench) -> None:
    """Card, driver and versions."""
    noted = bench.report.facts
    noted["torch"] = torch.__version__
    noted["device"] = str(bench.device)
    if bench.is_cuda:
        query = "--query-gpu=name,driver_version,memory.total"
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        noted["card"] = shown.stdout.strip() or torch.cuda.get_device_name()
        noted["cuda"], noted["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        noted["TF32 in convolutions"] = torch.backends.cudnn.allow_tf32
        noted["TF32 in matrix products"] = torch.backends.cuda.matmul.allow_tf32
    else:
        noted["threads"] = torch.get_num_threads()


def ceilings(bench: Bench) -> None:
    """The rates that everything else is measured against."""
    side = bench.sizes.gemm
    flops = 2.0 * side**3
    left, right = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    timing = bench.measure(lambda: left @ right, budget=0.5, warmups=3)
    bench.report.facts["bf16 GEMM, TFLOP/s"] = round(flops / timing.median / 1e12, 4)
    bench.report.add(f"bf16 GEMM {side}³", timing, flops=flops)
    if bench.is_cuda:
        timing = bench.measure(fp8_product(left, right), budget=0.5, warmups=3)
        bench.report.facts["fp8 GEMM, TFLOP/s"] = round(flops / timing.median / 1e12, 4)
        bench.report.add(f"fp8 GEMM {side}³, _scaled_mm", timing, flops=flops, remark="over the bf16 floor")
    source = torch.empty(bench.sizes.copied, dtype=torch.uint8, device=bench.device).random_()
    target = torch.empty_like(source)
    timing = bench.measure(lambda: target.copy_(source), budget=0.3)
    rate = 2 * source.nbytes / timing.median / 1e12
    bench.report.facts["copy, TB/s read and written"] = round(rate, 4)
    bench.report.add("copy on the device", timing, remark=f"{rate:.2f} TB/s, read and written")


def fp8_product(left: Tensor, right: Tensor) -> Callable[[], Tensor]:
    """The product of left (M, K) and right (K, N) in 8-bit floats with one scale each, ready to be run."""
    one = torch.ones((), device=left.device)
    a, b = (
        left.to(FP8),
        right.t().contiguous().to(FP8).t(),
    )  # columns first, for the kernel
    return lambda: torch._scaled_mm(a, b, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)


def shapes(bench: Bench) -> None:
    """The matrix products of medium's image stream, in bf16 and in fp8, and what it costs to make fp8."""
    dim, tokens = bench.sizes.medium.dim, 2 * (bench.sizes.pixels // 16) ** 2
    for name, fan_in, fan_out in (
        ("qkv", dim, 3 * dim),
        ("proj", dim, dim),
        ("fc1", dim, 4 * dim),
        ("fc2", 4 * dim, dim),
    ):
        x = torch.randn(tokens, fan_in, device=bench.device, dtype=torch.bfloat16)
        weight = torch.randn(fan_out, fan_in, device=bench.device, dtype=torch.bfloat16)
        bias = torch.randn(fan_out, device=bench.device, dtype=torch.bfloat16)
        flops = 2.0 * tokens * fan_in * fan_out
        timing = bench.measure(lambda: F.linear(x, weight, bias), budget=0.1)  # noqa: B023
        remark = ""
        if bench.is_cuda:
            fast = bench.measure(fp8_product(x, weight.t()), budget=0.1)
            cast = bench.measure(lambda: x.to(FP8), budget=0.1)  # noqa: B023
            remark = f"fp8 {seconds(fast.median)}, cast {seconds(cast.median)}"
        bench.report.add(f"  {name}, {tokens} x {fan_in} to {fan_out}", timing, flops=flops, remark=remark)


def attentions(bench: Bench) -> None:
    """Attention over all tokens of medium's block, by each of torch's implementations."""
    config, tokens = bench.sizes.medium, (bench.sizes.pixels // 16) ** 2 + TOKENS
    shape = 2, config.num_heads, tokens, config.dim // config.num_heads
    q, k, v = (torch.randn(shape, device=bench.device, dtype=torch.bfloat16) for _ in range(3))
    flops = 4.0 * shape[0] * config.dim * tokens**2

    def run() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    timing = bench.measure(run, budget=0.2)
    bench.report.add(f"  attention {shape}, as chosen", timing, flops=flops)
    if not bench.is_cuda:
        return
    for backend in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
    ):
        with sdpa_kernel(backend):
            timing = bench.measure(run, budget=0.2)
        bench.report.add(f"  attention, {backend.name}", timing, flops=flops)
