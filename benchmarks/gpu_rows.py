"""The measurements of `gpu`: the transformer, its loop, the autoencoder and the text encoders."""

import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu_models import (
    Sizes,
    inputs,
    parameters_gb,
    random_clip,
    random_encoding,
    random_mmdit,
    random_t5,
    random_vae,
)
from gpu_report import Report, Timing, measure_each, peak_of, seconds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import flow
import sd35
from mmdit import MMDiT, MMDiTConfig, compile_blocks, eager_forward, graph_forward

GUIDANCE_SCALE = 4.5


@dataclass
class Bench:
    """What every measurement is given."""

    device: torch.device
    sizes: Sizes
    report: Report
    left: Callable[[], float]
    """Seconds that remain of the run."""
    dtype: torch.dtype = torch.bfloat16

    @property
    def is_cuda(self) -> bool:
        """Whether there are graphs, events and a count of memory."""
        return self.device.type == "cuda"

    def measure(
        self, run: Callable[[], object], *, budget: float = 1.0, most: int = 20, warmups: int = 2
    ) -> Timing:
        """The time of one call, of as many as `budget` seconds allow, but `most` at most."""
        return self.measure_each([run], budget=budget, most=most, warmups=warmups)[0]

    def measure_each(
        self, runs: Sequence[Callable[[], object]], *, budget: float, most: int = 20, warmups: int = 2
    ) -> list[Timing]:
        """The times of several, taken in turn, so that what changes on the machine changes for all."""
        most = min(most, self.sizes.repeats)
        return measure_each(runs, self.device, budget=budget, most=most, warmups=warmups)


def free(device: torch.device) -> None:
    """Give memory back that the last measurement held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def flops_of(run: Callable[[], object]) -> float:
    """The floating-point operations of matrix products, convolutions and attention in one call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def joined(*remarks: str) -> str:
    """Those remarks that say something."""
    return ", ".join(remark for remark in remarks if remark)


def finite(value: Tensor) -> str:
    """A word for the remark, where something went wrong."""
    return "" if bool(value.isfinite().all()) else "NOT FINITE"


def transformer(bench: Bench, name: str, config: MMDiTConfig, pixels: int) -> None:
    """A guided step of the transformer alone: eager, the host's share of it, and as a CUDA graph."""
    model = random_mmdit(config, bench.device, bench.dtype)
    step_rows(bench, f"{name} {pixels} px, guided step", model, pixels)
    if name == "medium":
        given = inputs(config, pixels, bench.device, bench.dtype)
        profile(bench, f"{name} {pixels} px", lambda: model(*given))


def step_rows(bench: Bench, name: str, model: MMDiT, pixels: int) -> None:
    """The rows of a model at a size."""
    given = inputs(model.config, pixels, bench.device, bench.dtype)

    def run() -> Tensor:
        return model(*given)

    eager, flops = run(), flops_of(run)
    peak = peak_of(run, bench.device)
    timing = bench.measure(run)
    remark = joined(f"weights {parameters_gb(model):.2f} GB", host_share(bench, run), finite(eager))
    bench.report.add(f"{name}, eager", timing, flops=flops, peak=peak, remark=remark)
    graph_row(bench, name, model, given, eager, flops)


def graph_row(
    bench: Bench, name: str, model: MMDiT, given: Sequence[Tensor], expected: Tensor, flops: float
) -> None:
    """The row of `sd35.load(cuda_graphs=True)`, where forwards are repeated, and whether bits are equal."""
    if not bench.is_cuda:
        return
    begin = time.perf_counter()
    graph_forward(model)
    out = model(*given)
    torch.cuda.synchronize()
    took = time.perf_counter() - begin
    same = "equal bits" if torch.equal(out, expected) else f"differs by {relative(out, expected):.1e}"
    remark = joined(same, f"recorded in {seconds(took)}", host_share(bench, lambda: model(*given)))
    timing = bench.measure(lambda: model(*given))
    peak = peak_of(lambda: model(*given), bench.device)
    bench.report.add(f"{name}, CUDA graph", timing, flops=flops, peak=peak, remark=remark)
    eager_forward(model)


def host_share(bench: Bench, run: Callable[[], object]) -> str:
    """How long Python takes to hand a call to the device; below the call's own time nobody waits for it."""
    if not bench.is_cuda:
        return ""
    taken = []
    for _ in range(3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    torch.cuda.synchronize()
    return f"host {seconds(min(taken))}"


def relative(actual: Tensor, expected: Tensor) -> float:
    """The root mean square of a difference, relative to that of what was expected."""
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).norm() / expected.norm())


def profile(bench: Bench, name: str, run: Callable[[], object]) -> None:
    """Where the time of one call goes, by operator and by kernel, in a file; the largest in the table."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if bench.is_cuda:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds, record_shapes=True) as profiler:
        run()
        if bench.is_cuda:
            torch.cuda.synchronize()
    key = "self_device_time_total" if bench.is_cuda else "self_cpu_time_total"
    by_shape = profiler.key_averages(group_by_input_shape=True)
    for averages in (profiler.key_averages(), by_shape):
        table = averages.table(sort_by=key, row_limit=50, max_name_column_width=90)
        bench.report.text("profile.txt", f"{name}\n{table}")
    operators = [one for one in profiler.key_averages() if one.key.startswith("aten::")]
    total = sum(getattr(one, key) for one in operators) or 1
    largest = sorted(operators, key=lambda one: -getattr(one, key))[:8]
    shares = ", ".join(f"{one.key[6:]} {getattr(one, key) / total:.0%} ({one.count})" for one in largest)
    bench.report.add("  where the time goes", remark=shares)


def generation(bench: Bench) -> None:
    """All steps of a picture as `sd35` takes them, and where its loop makes the host wait for the device."""
    sizes, config = bench.sizes, bench.sizes.medium
    pipe = sd35.load("tiny", bench.device, bench.dtype)
    pipe.mmdit = random_mmdit(config, bench.device, bench.dtype)
    pipe.vae = random_vae(sizes.vae, bench.device, bench.dtype)
    cond, uncond = (random_encoding(config, bench.device, bench.dtype) for _ in range(2))
    sigmas = flow.sigmas(sizes.steps)
    velocity = pipe.velocity(cond, uncond, GUIDANCE_SCALE, sigmas=sigmas)
    noise = torch.randn(1, config.channels, sizes.pixels // 8, sizes.pixels // 8, device=bench.device)

    def run() -> Tensor:
        return flow.solve(velocity, noise, sigmas)

    timing = bench.measure(run, budget=4, most=3, warmups=1)
    each = f"{seconds(timing.median / sizes.steps)} a step"
    name = f"medium {sizes.pixels} px, {sizes.steps} guided steps, sd35's loop"
    bench.report.add(name, timing, peak=peak_of(run, bench.device), remark=each)
    timing = bench.measure(lambda: pipe.decode(run()).cpu(), budget=2, most=3, warmups=1)
    peak = peak_of(lambda: pipe.decode(run()), bench.device)
    bench.report.add(f"{name}, and the picture", timing, peak=peak)
    if bench.is_cuda:
        waits(bench, lambda: flow.solve(velocity, noise, flow.sigmas(4)), 4)


def waits(bench: Bench, run: Callable[[], object], steps: int) -> None:
    """Count where a loop makes the host wait for the device, a step, and name the lines."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [one for one in caught if "synchronizing" in str(one.message)]
    lines = Counter(f"{'/'.join(Path(one.filename).parts[-2:])}:{one.lineno}" for one in found)
    places = ", ".join(f"{line} {count}" for line, count in lines.most_common(12))
    remark = f"{len(found) / steps:.1f} a step ({len(found)} in {steps} steps): {places}"
    bench.report.add("  where the loop waits for the device", remark=remark)


def text_encoders(bench: Bench) -> None:
    """Encoding a prompt and the negative one, together."""
    sizes, length = bench.sizes, 77
    makers: dict[str, Callable[[], nn.Module]] = {
        "CLIP-L": lambda: random_clip(sizes.clip_l, bench.device, bench.dtype),
        "CLIP-G": lambda: random_clip(sizes.clip_g, bench.device, bench.dtype),
        "T5-XXL": lambda: random_t5(sizes.t5, bench.device, bench.dtype),
    }
    for name, make in makers.items():
        module = make()
        vocabulary = min(sizes.clip_l.vocab_size, sizes.t5.vocab_size)
        ids = torch.randint(vocabulary, (2, length), device=bench.device)

        def run(module: nn.Module = module, ids: Tensor = ids) -> object:
            return module(ids)

        flops, peak = flops_of(run), peak_of(run, bench.device)
        timing = bench.measure(run, budget=0.5)
        weights = f"weights {parameters_gb(module):.2f} GB"
        what = f"{name}, 2 prompts of {length} tokens"
        bench.report.add(what, timing, flops=flops, peak=peak, remark=weights)
        del module, run
        free(bench.device)


def compiled(bench: Bench) -> None:
    """The transformer with every block compiled, and that as a CUDA graph."""
    config, pixels = bench.sizes.medium, bench.sizes.pixels
    model = random_mmdit(config, bench.device, bench.dtype)
    given = inputs(config, pixels, bench.device, bench.dtype)
    eager = model(*given)
    flops = flops_of(lambda: model(*given))
    compile_blocks(model)
    begin = time.perf_counter()
    out = model(*given)
    if bench.is_cuda:
        torch.cuda.synchronize()
    took = time.perf_counter() - begin
    peak = peak_of(lambda: model(*given), bench.device)
    timing = bench.measure(lambda: model(*given))
    remark = joined(
        f"compiled in {took:.0f} s",
        host_share(bench, lambda: model(*given)),
        f"differs by {relative(out, eager):.1e} from eager",
        finite(out),
    )
    name = f"medium {pixels} px, guided step, blocks compiled"
    bench.report.add(name, timing, flops=flops, peak=peak, remark=remark, compile_seconds=took)
    graph_row(bench, name, model, given, out, flops)
