"""What 8-bit matrix products could give the transformer on Hopper: every linear layer of its blocks in e4m3.

Each row of the input has a scale of its own, found at the call, and each output channel of the weight one
that is found once: the plainest way there is, to know what it is worth and what it costs in accuracy.
"""

import time

import torch
from gpu_kernels import FP8
from gpu_models import inputs, parameters_gb, random_mmdit
from gpu_report import peak_of, seconds
from gpu_rows import Bench, finite, flops_of, graphed, joined, relative
from torch import Tensor, nn

LARGEST = torch.finfo(FP8).max


class Fp8Linear(nn.Module):
    """A linear layer whose product is taken in 8-bit floats."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantised(linear.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())  # (1, N)
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), in the dtype of x."""
        rows, scale = quantised(x.flatten(0, -2))
        out = torch._scaled_mm(
            rows, self.weight.t(), scale, self.scale, bias=self.bias, out_dtype=x.dtype, use_fast_accum=True
        )
        return out.unflatten(0, x.shape[:-1])


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of (M, K) in 8-bit floats, and what each is to be multiplied by, (M, 1) in float32."""
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_min(1e-12) / LARGEST
    return (x / scale).to(FP8).contiguous(), scale


def to_fp8(model: nn.Module) -> None:
    """Replace the linear layers that every token passes through; those of the modulation see one row only."""
    for parent in [module for name, module in model.named_modules() if "adaLN" not in name]:
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Fp8Linear(child))


def fp8(bench: Bench, *, compiling: bool = False) -> None:
    """A guided step in 8 bits: eager and as a graph, or compiled and as a graph."""
    config, pixels = bench.sizes.medium, bench.sizes.pixels
    model = random_mmdit(config, bench.device, bench.dtype)
    given = inputs(config, pixels, bench.device, bench.dtype)
    expected, flops = model(*given), flops_of(lambda: model(*given))
    to_fp8(model.joint_blocks)
    if compiling:
        for block in model.joint_blocks:
            block.compile(fullgraph=True)
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
    if bench.is_cuda:
        graph, _ = graphed(lambda: model(*given))
        bench.report.add(f"{name}, CUDA graph", bench.measure(graph.replay), flops=flops)


def fp8_compiled(bench: Bench) -> None:
    """The same with every block compiled, which joins scaling with what comes before it."""
    fp8(bench, compiling=True)
