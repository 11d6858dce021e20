"""Drawing in less memory: what each level does, what it needs, and the modulation of a schedule first.

low
    Text encoders one by one. On a GPU the modulation vectors of the whole schedule are computed first, and
    the layers that give them are on the CPU while the picture is drawn, with all positions of the table but
    those of the picture. The same bits.
lowest
    Beside it, on a GPU T5 layer by layer: the same bits. Pictures are encoded and decoded in tiles of
    512 x 512: larger ones differ a little, by how much says `vae.tiling`.

Needs are computed from sizes, by what `benchmarks/peaks.py` counts.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from flow import SOLVERS
from mmdit import MMDiT, MMDiTConfig, crop_table, is_watched, release_modulation
from vae import VAEConfig

from .errors import SettingsError
from .velocity import GuidedVelocity

Level = Literal["auto", "off", "low", "lowest"]
GB = 1e9
SPARE = 1.5e9
"""Bytes left for what is not computed: workspaces, 1.1 GB in a decode of 1024 x 1024 on an H100. A small
model leaves as much as it needs."""
TILE = 64
"""Side of a tile in latent pixels."""
STEP, DECODE = 23, 6
"""Numbers held at most beside the weights: in a step, for each token, of the width of the transformer; in a
decode, for each pixel, of the width of the autoencoder's first level."""


@dataclass(frozen=True)
class Plan:
    """What is done to need less memory."""

    one_by_one: bool = False
    """Each text encoder is loaded, run and freed before the next."""
    by_layers: bool = False
    """T5 stays on the CPU, and each of its layers goes to the GPU in its turn."""
    release: bool = False
    """The layers that give modulation vectors, and positions beyond the picture, are on the CPU meanwhile."""
    tile: int | None = None
    """Side of the tiles that pictures are encoded and decoded in, in latent pixels."""

    def __str__(self) -> str:
        names = {
            "text encoders one by one": self.one_by_one,
            "T5 layer by layer": self.by_layers,
            "modulation vectors first": self.release,
            f"coded in tiles of {8 * (self.tile or 0)} px (larger pictures differ a little)": self.tile,
        }
        return ", ".join(name for name, done in names.items() if done) or "nothing to do"


NOTHING = Plan()
PLANS = {"off": NOTHING, "low": Plan(True, release=True), "lowest": Plan(True, True, True, TILE)}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes that the parts of a model take."""

    weights: Mapping[str, float]
    """By part."""
    mmdit: MMDiTConfig
    vae: VAEConfig
    itemsize: int
    """Of what transformer and autoencoder compute in."""
    pixels: int
    """Of a picture."""
    streamed: float = 0
    """Of T5, where its layers come one by one: its token table and a layer."""

    def peak(self, plan: Plan) -> float:
        """At the highest moment of drawing a picture with guidance."""
        drawn = self.weights["mmdit"] + self.weights["vae"]
        each = {part: size for part, size in self.weights.items() if part not in ("mmdit", "vae")}
        if plan.by_layers and "t5" in each:
            each["t5"] = self.streamed
        encoders = (max if plan.one_by_one else sum)([0.0, *each.values()])
        away = (self.modulation + self.positions) * plan.release
        drawing = drawn - away + max(self.step, self.decode(plan.tile))
        return max(drawn + encoders, drawing + (0 if plan.one_by_one else encoders))

    @property
    def modulation(self) -> float:
        """Of the layers that give modulation vectors."""
        width, depth, dual = self.mmdit.dim, self.mmdit.depth, len(self.mmdit.dual_blocks)
        vectors = 12 * depth + 3 * dual - 4 + 2  # the last block's context has 2, and so has the final layer
        return vectors * width * width * self.itemsize

    @property
    def positions(self) -> float:
        """Of the table's positions beyond those of a square picture."""
        beyond = self.mmdit.pos_embed_size**2 - self.pixels / (8 * self.mmdit.patch_size) ** 2
        return max(0.0, beyond) * self.mmdit.dim * self.itemsize

    @property
    def step(self) -> float:
        """Beside the weights, in a step with guidance."""
        tokens = self.pixels / (8 * self.mmdit.patch_size) ** 2 + 154
        return 2 * tokens * STEP * self.mmdit.dim * self.itemsize

    def decode(self, tile: int | None) -> float:
        """Beside the weights, in a decode."""
        pixels = self.pixels if tile is None else min(self.pixels, (8 * tile) ** 2)
        return pixels * DECODE * self.vae.channels[0] * self.itemsize


def choose(
    level: Level, needs: Needs, device: torch.device, free: float | None
) -> tuple[Plan, tuple[str, ...]]:
    """What is done on a device with so many free bytes, and a line that says it.

    Args:
        level: "auto" is the first of off, low and lowest that fits; off where nobody knows what is free.
        needs: of the model.
        device: on a CPU nothing is gained by moving layers to the CPU.
        free: as `free_memory` says.

    Raises:
        SettingsError: there is no such level.
    """
    if level not in get_args(Level):
        raise SettingsError(f"memory must be one of {', '.join(get_args(Level))}; got {level!r}")
    moves = {} if device.type != "cpu" else {"release": False, "by_layers": False}
    plans = {name: replace(plan, **moves) for name, plan in PLANS.items()}
    chosen: str = level
    if level == "auto":
        peaks = {name: needs.peak(plan) for name, plan in plans.items()}
        fits = (name for name, peak in peaks.items() if free is None or peak + min(peak, SPARE) <= free)
        chosen = next(fits, "lowest")
    if chosen == "off":
        return Plan(), ()
    plan = plans[chosen]
    before, after = needs.peak(Plan()) / GB, needs.peak(plan) / GB
    there = "" if free is None else f"; {free / GB:.3g} GB are free"
    return plan, (f"memory {chosen}: {plan}: about {after:.3g} GB in place of {before:.3g}{there}",)


def free_memory(device: torch.device) -> float | None:
    """Bytes that can be taken on a device now; None where nobody tells."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = 1024.0 * int(lines["MemAvailable"].split()[0])
    group = Path("/sys/fs/cgroup")  # what a container may take
    limit = group / "memory.max"
    if limit.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, float(most) - float((group / "memory.current").read_text()))
    return free


@contextmanager
def modulation_first(
    velocity: GuidedVelocity, count: int, solver: str, sigmas: Tensor, **options: Any
) -> Iterator[int]:
    """Within the block, the vectors of a schedule stand in the place of the layers that give them.

    The velocity stays what it was, to the last bit, and so do the layers, which come back at the end. Nothing
    is done where a solver chooses its levels as it goes, or where somebody watches these layers.

    Args:
        velocity: of the generation.
        count: of its samples.
        solver: that follows it, by name.
        sigmas: the levels that it is run on, (steps + 1,), in the dtype of the states.
        options: of the solver.

    Yields:
        Bytes saved.
    """
    mmdit = velocity.mmdit
    if SOLVERS[solver].evaluations is None or is_watched(mmdit, "adaLN_modulation"):
        yield 0
        return
    levels = levels_asked(solver, sigmas.to(mmdit.pos_embed.device), options)
    released = release_modulation(mmdit, levels, velocity.pooled(count))
    try:
        yield released.saved
    finally:
        released.restore()


@contextmanager
def positions_of(mmdit: MMDiT, height: int, width: int) -> Iterator[None]:
    """Within the block, the device holds of the positions those alone that a size reads: the same bits.

    Args:
        mmdit: whose table it is; it comes back at the end.
        height: of the latents.
        width: of the latents.
    """
    patch, device = mmdit.config.patch_size, mmdit.pos_embed.device
    whole = crop_table(mmdit, height // patch, width // patch).to("cpu")
    try:
        yield
    finally:
        mmdit.pos_embed = whole.to(device)


def levels_asked(solver: str, sigmas: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Every level at which a solver calls the velocity, by running it on one number that stays.

    On the device of `sigmas`, where levels between those of the table are then rounded as they will be.
    """
    asked: dict[float, Tensor] = {}

    def still(x: Tensor, sigma: Tensor) -> Tensor:
        asked[float(sigma[0])] = sigma[0]
        return torch.zeros_like(x)

    own = SOLVERS[solver]
    noise = {"generator": [torch.Generator()]} if own.stochastic else {}
    for _ in own.run(still, sigmas.new_zeros(1, 1), sigmas, **options, **noise):
        pass
    return torch.stack(list(asked.values()))
