"""The third lesson: not to overshoot where guidance is strong and steps are few, by DiffusionNFT.

The reward is the likeness to what the painter paints; the judge that measures, tests/judge.py, follows
outlines and knows no painter. Prompts that are rewarded are training's, prompts that are measured held out.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from lessons_judged import clocked, pictures, right, save_strip, told
from torch import Tensor

import sd35
from sd35.noise import seeded
from sd35.tiny.captions import caption, held_out_prompts
from sd35.tiny.painting import paint, table_of
from sd35.tiny.scenes import Scene, training_scene
from sd35.train.fresh import fresh_lora, save_lora
from sd35.train.reward import train_nft
from sd35.train.targets import target_paths

STEPS, GUIDANCE = 6, 4.5
"""With which pictures are drawn for the reward: so few that guidance overshoots."""
DEFAULT = 28
"""Steps of a picture that is drawn for its own sake."""
REWARDED, ONE, TWO = 100, 100, 24
"""Prompts that are rewarded; prompts of one and of two shapes that are measured."""
EVERY = 10
"""Rounds of which the mean reward is told."""
SIDE = 64
"""Pixels at which pictures are compared."""
ENOUGH = 0.1
"""What may be left of a picture that is right, as a share of its shape's energy: paint has grain."""


def rewarded(count: int, seed: int) -> dict[str, Scene]:
    """Complete captions of one shape on grey, most of which are drawn wrong, and their scenes."""
    source, found = seeded(seed), {}
    while len(found) < count:
        scene = training_scene(source, shapes=1)
        if scene.background == "grey":
            found[caption(scene, source, complete=True)] = scene
    return found


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


def measured(pipe: sd35.Pipeline, folder: Path, when: str) -> None:
    """Draw what is measured by the lesson's steps and by the default's, and tell how much is right."""
    shares = {}
    for name, prompts, steps in (
        ("one shape", held_out_prompts(ONE, shapes=1, seed=32), STEPS),
        ("one shape", held_out_prompts(ONE, shapes=1, seed=32), DEFAULT),
        ("two shapes", held_out_prompts(TWO, shapes=2, seed=33), DEFAULT),
    ):
        drawn = pictures(pipe, prompts, steps=steps, scale=GUIDANCE)
        shares[f"{name}, {steps} steps"] = f"{right(drawn, prompts)} of {len(prompts)}"
        save_strip(folder / f"{when}, {name}, {steps}.jpg", drawn[:8])
    told("reward", when=when, right=shares)


def lesson(folder: Path, steps: int) -> None:
    """Train a LoRA of rank 16 by rounds of eight pictures, and measure with and without it."""
    path = folder / "lora.safetensors"
    if not path.is_file():
        train(path, steps)
    for when, lora in (("before", None), ("after", path)):
        measured(sd35.load("tiny", lora=lora, dtype=torch.bfloat16), folder, when)


def train(path: Path, rounds: int) -> None:
    """Train, and write what was learned."""
    scenes = rewarded(REWARDED, seed=30)
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
            list(scenes),
            Likeness(scenes),
            rounds=rounds,
            steps=STEPS,
            guidance_scale=GUIDANCE,
            learning_rate=1e-3,
            watch=watch,
        )
    told("reward", rounds=rounds, **spent)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_lora(pipe, path)
