"""A lesson: to read prompts that are lists of words, by DiffusionNFT without guidance.

The model learned sentences. Of "red background, pink star, small, left" it draws small shapes too large.
The reward is the likeness to what the painter paints; the judge that measures, tests/judge.py, follows
outlines and knows no painter. Scenes that are rewarded are training's, scenes that are measured held out.
"""

from collections.abc import Sequence
from math import comb
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lessons_judged import clocked, judge, pictures, save_strip, told
from torch import Tensor

import sd35
from sd35.noise import seeded
from sd35.tiny.captions import Claim, caption, parse
from sd35.tiny.painting import paint, table_of
from sd35.tiny.scenes import Scene, is_held_out, random_scene
from sd35.train.fresh import fresh_lora, save_lora
from sd35.train.reward import train_nft
from sd35.train.targets import target_paths

STEPS = 4
"""With which pictures are drawn, without guidance, for the reward and to be measured."""
GROUPS = 4
"""Prompts of a round, each with eight pictures."""
REWARDED, MEASURED = 400, 200
EVERY = 5
"""Rounds of which the mean reward is told."""
SIDE = 64
"""Pixels at which pictures are compared."""
ENOUGH = 0.03
"""What may be left of a picture that is right, as a share of its shape's energy: paint has grain."""


def listed(scene: Scene) -> str:
    """A prompt as a list of words."""
    shape = scene.shapes[0]
    return f"{scene.background} background, {shape.colour} {shape.kind}, {shape.size}, {shape.place}"


def sentence(scene: Scene) -> str:
    """A prompt as the model learned them, which says as much."""
    return caption(scene, seeded(0), complete=True)


def scenes(count: int, seed: int, *, held_out: bool) -> list[Scene]:
    """Different scenes of one shape."""
    source, found = seeded(seed), {}
    while len(found) < count:
        scene = random_scene(source, shapes=1)
        if is_held_out(scene) == held_out:
            found[listed(scene)] = scene
    return list(found.values())


class Likeness:
    """A reward: how near a picture comes to the nearest of 27 that the painter could paint of its scene.

        -log max(‖picture - painted‖² / ‖painted - background‖², what is enough)

    Of what is right, all is equally good: else the grain would be rewarded.
    """

    def __init__(self, scenes: dict[str, Scene]) -> None:
        self.scenes = scenes
        off = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)  # x, y and radius: (27, 3)
        self.offsets = torch.stack([off, torch.zeros_like(off)], 1)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] and their prompts to (B,)."""
        images = F.interpolate(images.float().clamp(-1, 1), size=(SIDE, SIDE), mode="area")
        left = [self.left(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        return -torch.stack(left).clamp_min(ENOUGH).log()

    def left(self, image: Tensor, prompt: str) -> Tensor:
        """What the best of them leaves of one picture, (), as a share of the shape's energy."""
        table = table_of([self.scenes[prompt]]).expand(len(self.offsets), -1)
        painted = paint(table, self.offsets, torch.zeros(1, 3, 32, 32), size=SIDE)
        shape = (painted - painted[:, :, :1, :1]).square().sum((1, 2, 3))
        return ((painted - image).square().sum((1, 2, 3)) / shape).min()


def chance(gained: int, lost: int) -> float:
    """That so many or more of the pictures that changed would change one way (the sign test, two-sided)."""
    changed = gained + lost
    tail = sum(comb(changed, k) for k in range(max(gained, lost), changed + 1)) / 2**changed
    return min(1.0, 2 * tail)


def marks(
    pipe: sd35.Pipeline, prompts: Sequence[str], claims: Sequence[Claim]
) -> tuple[list[bool], np.ndarray]:
    """Which pictures are right, and the first of them."""
    drawn = pictures(pipe, prompts, steps=STEPS, scale=1.0)
    return [judge.agrees(judge.read(one), c) for one, c in zip(drawn, claims, strict=True)], drawn[:8]


def lesson(folder: Path, steps: int) -> None:
    """Train a LoRA of rank 16, and measure with and without it, by the same noise."""
    path = folder / "lora.safetensors"
    if not path.is_file():
        train(path, steps)
    held_out = scenes(MEASURED, seed=32, held_out=True)
    claims = [parse(sentence(scene)) for scene in held_out]
    pipes = [sd35.load("tiny", lora=lora, dtype=torch.bfloat16) for lora in (None, path)]
    for name, wording in (("lists", listed), ("sentences", sentence)):
        prompts = [wording(scene) for scene in held_out]
        (before, first), (after, second) = (marks(pipe, prompts, claims) for pipe in pipes)
        gained = sum(b > a for a, b in zip(before, after, strict=True))
        lost = sum(a > b for a, b in zip(before, after, strict=True))
        counts = {"before": sum(before), "after": sum(after), "gained": gained, "lost": lost}
        told("reward", prompts=name, of=MEASURED, **counts, chance=chance(gained, lost))
        save_strip(folder / f"{name}.jpg", first, second)


def train(path: Path, rounds: int) -> None:
    """Train, and write what was learned."""
    rewarded = {listed(scene): scene for scene in scenes(REWARDED, seed=30, held_out=False)}
    pipe = sd35.load("tiny", dtype=torch.bfloat16)
    paths = {"mmdit": target_paths(pipe.mmdit, ("blocks",))}
    parameters = fresh_lora(pipe, paths, rank=16, alpha=16.0)
    log: list[float] = []

    def watch(number: int, mean: float) -> None:
        log.append(mean)
        if number % EVERY == EVERY - 1:
            told("reward", round=number + 1, mean_reward=round(sum(log[-EVERY:]) / EVERY, 3))

    with clocked() as spent:
        train_nft(
            pipe,
            parameters,
            list(rewarded),
            Likeness(rewarded),
            rounds=rounds,
            groups=GROUPS,
            steps=STEPS,
            learning_rate=1e-3,
            watch=watch,
        )
    told("reward", rounds=rounds, **spent)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_lora(pipe, path)
