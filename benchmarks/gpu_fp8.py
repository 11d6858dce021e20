"""What `sd35.load(fp8=True)` gives and costs: the products of the transformer's blocks in 8-bit floats."""

import time

import torch
from gpu_models import inputs, parameters_gb, random_mmdit
from gpu_report import peak_of, seconds
from gpu_rows import Bench, finite, flops_of, graph_row, joined, relative

from mmdit import compile_blocks
from sd35.adapters.fp8 import use_fp8


def fp8(bench: Bench, *, compiling: bool = False) -> None:
    """A guided step in 8 bits: eager and as a graph, or compiled and as a graph."""
    config, pixels = bench.sizes.medium, bench.sizes.pixels
    model = random_mmdit(config, bench.device, bench.dtype)
    given = inputs(config, pixels, bench.device, bench.dtype)
    expected, flops = model(*given), flops_of(lambda: model(*given))
    use_fp8(model)
    if compiling:
        compile_blocks(model)
    begin = time.perf_counter()
    out = model(*given)
    if bench.is_cuda:
        torch.cuda.synchronize()
    first = f"first call {seconds(time.perf_counter() - begin)}"
    peak = peak_of(lambda: model(*given), bench.device)
    error = f"differs by {relative(out, expected):.1e} from bf16"
    remark = joined(f"weights {parameters_gb(model):.2f} GB", error, first, finite(out))
    name = f"medium {pixels} px, guided step, fp8{', compiled' if compiling else ''}"
    timing = bench.measure(lambda: model(*given))
    bench.report.add(name, timing, flops=flops, peak=peak, remark=remark)
    graph_row(bench, name, model, given, out, flops)


def fp8_compiled(bench: Bench) -> None:
    """The same with every block compiled, which joins scaling with what comes before it."""
    fp8(bench, compiling=True)
