"""Drawing in less memory: what each level does, and what it needs.

low
    Text encoders one by one. On a GPU the transformer's blocks are on the CPU while prompts are read. The
    modulation vectors of the whole schedule are computed first, and the layers that give them are on the CPU
    while the picture is drawn, with all positions of the table but those of the picture. The same bits.
lower
    Beside it, on a GPU T5 layer by layer. The same bits.
lowest
    Beside it, on a GPU each block of the transformer comes to it while the one before computes: the same
    bits. Pictures are encoded and decoded in tiles of 512 x 512: larger ones differ a little, by how much
    says `vae.tiling`.

Needs are computed from sizes, by what `benchmarks/peaks.py` counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from mmdit import InTurn, MMDiT, MMDiTConfig, Offloaded, OnDemand
from vae import VAEConfig

from ..errors import SettingsError

Level = Literal["auto", "off", "low", "lower", "lowest"]
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
    away: bool = False
    """The transformer's blocks are on the CPU until the first step, and while prompts are read."""
    release: bool = False
    """The layers that give modulation vectors, and positions beyond the picture, are on the CPU meanwhile."""
    in_turn: bool = False
    """Each block comes to the GPU while the one before it computes, and two of them are there at most."""
    tile: int | None = None
    """Side of the tiles that pictures are encoded and decoded in, in latent pixels."""

    def __str__(self) -> str:
        names = {
            "text encoders one by one": self.one_by_one,
            "T5 layer by layer": self.by_layers,
            "the transformer on the CPU meanwhile": self.away and not self.in_turn,
            "modulation vectors first": self.release,
            "the transformer block by block": self.in_turn,
            f"coded in tiles of {8 * (self.tile or 0)} px (larger pictures differ a little)": self.tile,
        }
        return ", ".join(name for name, done in names.items() if done) or "nothing to do"


NOTHING = Plan()
LOW = Plan(one_by_one=True, away=True, release=True)
LOWER = replace(LOW, by_layers=True)
PLANS = {"off": NOTHING, "low": LOW, "lower": LOWER, "lowest": replace(LOWER, in_turn=True, tile=TILE)}


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
    blocks: float
    """Of the transformer's weights, those of its blocks."""
    block: float
    """Those of its largest block."""
    streamed: float = 0
    """Of T5, where its layers come one by one: its token table and a layer."""

    def peak(self, plan: Plan) -> float:
        """At the highest moment of drawing a picture with guidance."""
        each = {part: size for part, size in self.weights.items() if part not in ("mmdit", "vae")}
        if plan.by_layers and "t5" in each:
            each["t5"] = self.streamed
        encoders = (max if plan.one_by_one else sum)([0.0, *each.values()])
        rest = self.weights["vae"] + self.weights["mmdit"] - self.blocks
        reading = rest + encoders + (0 if plan.away else self.blocks)
        own, step = self._there(plan), self.step
        decoding = 0 if plan.in_turn else own
        positions = self.positions * plan.release
        drawing = rest - positions + max(own + step, decoding + self.decode(plan.tile))
        return max(reading, drawing + (0 if plan.one_by_one else encoders))

    def _there(self, plan: Plan) -> float:
        """Of the blocks' weights, those that are on the device in a step."""
        if plan.in_turn:  # two places, each for the largest block
            width, vectors = self.mmdit.dim, 15 if self.mmdit.dual_blocks else 12
            return 2 * (self.block - plan.release * vectors * width * width * self.itemsize)
        return self.blocks - self.modulation * plan.release

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
        level: "auto" is the first of off, low, lower and lowest that fits; off where nobody knows what does.
        needs: of the model.
        device: on a CPU nothing is gained by moving layers to the CPU.
        free: as `free_memory` says.

    Raises:
        SettingsError: there is no such level.
    """
    if level not in get_args(Level):
        raise SettingsError(f"memory must be one of {', '.join(get_args(Level))}; got {level!r}")
    on_cpu = dict.fromkeys(("away", "release", "by_layers", "in_turn"), False)
    moves = on_cpu if device.type == "cpu" else {}
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


def keep_blocks(mmdit: MMDiT, plan: Plan, device: torch.device) -> Offloaded | None:
    """Let the blocks of a transformer stay on the CPU as a plan says, and bring the rest to a device.

    Args:
        mmdit: on the CPU, where the plan says anything of its blocks.
        plan: of the model.
        device: where it runs.
    """
    if not plan.away:
        return None
    for name, part in mmdit.named_children():
        if name != "joint_blocks":
            part.to(device)
    mmdit.pos_embed = mmdit.pos_embed.to(device)
    return InTurn(mmdit, device) if plan.in_turn else OnDemand(mmdit, device)
