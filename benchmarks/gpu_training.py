"""The measurements of `gpu` that train: a step of a LoRA and a step of all weights, of medium at its size.

python benchmarks/gpu.py --only ceilings training --minutes 8 --output results
"""

from collections.abc import Mapping

import torch
from gpu_models import random_mmdit
from gpu_report import peak_of
from gpu_rows import Bench, flops_of, free
from torch import nn

from mmdit import MMDiT
from sd35.bench.stages import TOKENS
from sd35.train.blocks import prepare_blocks
from sd35.train.data import Batch
from sd35.train.fresh import fresh_lora
from sd35.train.loop import Learner
from sd35.train.memory import memory_of
from sd35.train.methods import FullTraining, LoraTraining
from sd35.train.objective import draw, velocity_loss
from sd35.train.settings import Training
from sd35.train.targets import target_paths

WAYS: dict[str, Training] = {
    "LoRA of rank 16": LoraTraining(rank=16),
    "LoRA of rank 16, checkpointed": LoraTraining(rank=16, checkpoint_blocks=True),
    "all weights, checkpointed": FullTraining(checkpoint_blocks=True),
}


@torch.enable_grad()
def training(bench: Bench) -> None:
    """A step of each way, one picture: seconds, the peak of memory beside what was said, the rate."""
    for name, told in WAYS.items():
        for pixels in (bench.sizes.fewer_pixels, bench.sizes.pixels):
            one_step(bench, f"medium {pixels} px, a training step, {name}", told, pixels)
            free(bench.device)


def one_step(bench: Bench, name: str, told: Training, pixels: int) -> None:
    """The row of a way of training at a size."""
    model = random_mmdit(bench.sizes.medium, bench.device, bench.dtype)
    parameters = trained(model, told)
    said = memory_of(model, parameters, (pixels, pixels, TOKENS), told).total / 1e9
    prepare_blocks(model, told)
    config, side = model.config, pixels // 8
    batch = Batch(
        torch.randn(1, config.channels, side, side, device=bench.device),
        torch.randn(1, TOKENS, config.context_dim, device=bench.device, dtype=bench.dtype),
        torch.randn(1, config.pooled_dim, device=bench.device, dtype=bench.dtype),
        ("",),
    )
    drawn = draw(batch.latents.shape, told, 0).to(bench.device, torch.float32)
    learner = Learner(parameters, told)
    row: dict[str, float] = {}

    def step() -> None:
        row.update(learner.gradients(lambda _: velocity_loss(model, batch, drawn, told), 1))
        learner.update(1)

    step()  # in which the optimizer takes its memory
    flops, peak = flops_of(step), peak_of(step, bench.device)
    timing = bench.measure(step, budget=3, most=5, warmups=1)
    remark = f"said {said:.2f} GB, loss {row['loss']:.3f}"
    bench.report.add(name, timing, flops=flops, peak=peak, remark=remark, said_gb=said)


def trained(model: MMDiT, told: Training) -> Mapping[str, nn.Parameter]:
    """What is trained, put in place."""
    if isinstance(told, LoraTraining):
        paths = {"mmdit": target_paths(model, told.target)}
        return fresh_lora(model, paths, rank=told.rank, alpha=float(told.rank))
    return dict(model.requires_grad_(True).named_parameters())
