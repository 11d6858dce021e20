"""What each level of memory needs and costs: a few guided steps and the picture, of medium at its size."""

from contextlib import ExitStack
from dataclasses import replace

import torch
from gpu_models import parameters_gb, random_encoding, random_mmdit, random_vae
from gpu_report import peak_of, seconds
from gpu_rows import GUIDANCE_SCALE, Bench, free, joined, relative
from torch import Tensor

import flow
import sd35
from mmdit import MMDiT, MMDiTConfig
from sd35.memory import PLANS, Needs, Plan, keep_blocks, modulation_first, positions_of
from textenc import Encoding

STEPS = 4
"""Of a generation, at most."""


def memory(bench: Bench) -> None:
    """Each level without text encoders: seconds, peak beside what was said, and whether bits are equal."""
    sizes, device, dtype = bench.sizes, bench.device, bench.dtype
    pipe = sd35.load("tiny", device, dtype, text=False)
    pipe.mmdit, pipe.vae = random_mmdit(sizes.medium, device, dtype), random_vae(sizes.vae, device, dtype)
    encodings = [random_encoding(sizes.medium, device, dtype) for _ in range(2)]
    side = sizes.pixels // pipe.vae.config.factor
    noise = torch.randn(1, sizes.medium.channels, side, side, device=device)
    steps, found = min(STEPS, sizes.steps), dict[str, Tensor]()
    for level in ("off", "low", "lowest"):  # lower is low with another T5
        plan = PLANS[level]
        if plan.away:
            pipe.mmdit.joint_blocks.to("cpu")
        offloaded = keep_blocks(pipe.mmdit, plan, device)
        free(device)

        def run(level: str = level, plan: Plan = plan) -> None:
            found[level] = drawn(pipe, plan, encodings, noise, steps)

        peak = peak_of(run, device)
        timing = bench.measure(run, budget=2, most=3, warmups=1)
        off = relative(found[level], found["off"])
        same = "equal bits" if torch.equal(found[level], found["off"]) else f"DIFFERS by {off:.1e}"
        said = needs(pipe.mmdit, sizes.medium, pipe, sizes.pixels, dtype).peak(plan) / 1e9
        each = f"{seconds(timing.median / steps)} a step with the picture"
        name = f"medium {sizes.pixels} px, {steps} guided steps and the picture, memory {level}"
        bench.report.add(name, timing, peak=peak, remark=joined(same, each, f"said {said:.2f} GB"))
        if offloaded is not None:
            offloaded.undo()


def drawn(pipe: sd35.Pipeline, plan: Plan, encodings: list[Encoding], noise: Tensor, steps: int) -> Tensor:
    """Latents after the steps that a generation takes under a plan; they are decoded too."""
    cond, uncond = encodings
    sigmas = flow.sigmas(steps)
    velocity = pipe.velocity(cond, uncond, GUIDANCE_SCALE, sigmas=sigmas)
    with ExitStack() as stack:
        if plan.release:
            stack.enter_context(modulation_first(velocity, 1, "euler", sigmas))
            stack.enter_context(positions_of(pipe.mmdit, *noise.shape[2:]))
        latents = flow.solve(velocity, noise, sigmas)
        replace(pipe, plan=plan).decode(latents)
    return latents


def needs(mmdit: MMDiT, config: MMDiTConfig, pipe: sd35.Pipeline, pixels: int, dtype: torch.dtype) -> Needs:
    """What a plan is computed from, without text encoders."""
    blocks = [1e9 * parameters_gb(block) for block in mmdit.joint_blocks]
    return Needs(
        weights={"mmdit": 1e9 * parameters_gb(mmdit), "vae": 1e9 * parameters_gb(pipe.vae)},
        mmdit=config,
        vae=pipe.vae.config,
        itemsize=dtype.itemsize,
        pixels=pixels**2,
        blocks=sum(blocks),
        block=max(blocks),
    )
