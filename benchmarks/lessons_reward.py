"""The third lesson: what to do where guidance breaks shapes, by a reward (DiffusionNFT).

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
from sd35.tiny.captions import caption, held_out_prompts, parse
from sd35.tiny.painting import paint, table_of
from sd35.tiny.scenes import Scene, training_scene
from sd35.train.fresh import fresh_lora, save_lora
from sd35.train.reward import train_nft
from sd35.train.targets import target_paths

STEPS, GUIDANCE = 8, 4.5
"""With which pictures are drawn for the reward."""
DEFAULT = 28
"""Steps of a picture that is drawn for its own sake."""
REWARDED = 400
HARD, ANY = 48, 100
"""Prompts that are measured: of what guidance breaks, and of one and of two shapes."""
SIDE = 64
"""Pixels at which pictures are compared."""
GRAIN = 0.2
"""Differences, for pictures in [-1, 1], that are no fault: paint has grain."""


def is_hard(scene: Scene) -> bool:
    """Whether it is a star on the right: most of what is wrong at a guidance of 4.5."""
    return (scene.shapes[0].kind, scene.shapes[0].place) == ("star", "right")


def rewarded(count: int, seed: int) -> dict[str, Scene]:
    """Complete captions and their scenes, of one shape: hard ones and others in turn."""
    source, found = seeded(seed), {}
    while len(found) < count:
        scene = training_scene(source, shapes=1)
        if is_hard(scene) == (len(found) % 2 == 0):
            found[caption(scene, source, complete=True)] = scene
    return found


class Likeness:
    """A reward: how near a picture comes to the nearest of 27 that the painter could paint of its scene.

    Minus the mean difference of channels, in what it exceeds the grain.
    """

    def __init__(self, scenes: dict[str, Scene]) -> None:
        self.scenes = scenes
        off = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)  # x, y and radius: (27, 3)
        self.offsets = torch.stack([off, torch.zeros_like(off)], 1)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] and their prompts to (B,)."""
        images = F.interpolate(images.float().clamp(-1, 1), size=(SIDE, SIDE), mode="area")
        return torch.stack([self.of(image, prompt) for image, prompt in zip(images, prompts, strict=True)])

    def of(self, image: Tensor, prompt: str) -> Tensor:
        """Of one picture."""
        table = table_of([self.scenes[prompt]]).expand(len(self.offsets), -1)
        painted = paint(table, self.offsets, torch.zeros(1, 3, 32, 32), size=SIDE)
        return -((painted - image).abs() - GRAIN).clamp_min(0).mean((1, 2, 3)).min()


def hard_prompts(count: int) -> list[str]:
    """Held-out prompts of stars on the right."""
    all_of_them = held_out_prompts(20 * count, shapes=1, seed=31)
    hard = [one for one in all_of_them if (s := parse(one).shapes[0]).kind == "star" and s.place == "right"]
    return hard[:count]


def measured(pipe: sd35.Pipeline, folder: Path, when: str, **more: int) -> None:
    """Draw what is measured by the lesson's steps and by the default's, and tell how much is right."""
    hard = hard_prompts(HARD)
    shares = {}
    for name, prompts, steps in (
        ("stars on the right", hard, STEPS),
        ("stars on the right", hard, DEFAULT),
        ("one shape", held_out_prompts(ANY, shapes=1, seed=32), DEFAULT),
        ("two shapes", held_out_prompts(ANY, shapes=2, seed=33), DEFAULT),
    ):
        drawn = pictures(pipe, prompts, steps=steps, scale=GUIDANCE)
        shares[f"{name}, {steps} steps"] = f"{right(drawn, prompts)} of {len(prompts)}"
        save_strip(folder / f"{when}, {name}, {steps}.png", drawn[:8])
    told("reward", when=when, right=shares, **more)


def lesson(folder: Path, steps: int) -> None:
    """Train a LoRA of rank 16 by rounds of eight pictures, and measure before and after."""
    measured(sd35.load("tiny"), folder, "before")
    scenes = rewarded(REWARDED, seed=30)
    pipe = sd35.load("tiny", dtype=torch.bfloat16)
    paths = {"mmdit": target_paths(pipe.mmdit, ("blocks",))}
    parameters = fresh_lora(pipe, paths, rank=16, alpha=16.0)
    log: list[float] = []

    def watch(number: int, mean: float) -> None:
        log.append(mean)
        if number % 20 == 19:
            told("reward", round=number + 1, mean_reward=round(sum(log[-20:]) / 20, 5))

    with clocked() as spent:
        train_nft(
            pipe,
            parameters,
            list(scenes),
            Likeness(scenes),
            rounds=steps,
            steps=STEPS,
            guidance_scale=GUIDANCE,
            learning_rate=5e-4,
            watch=watch,
        )
    path = save_lora(pipe, folder / "lora.safetensors")
    measured(sd35.load("tiny", lora=path), folder, "after", rounds=steps, **spent)
