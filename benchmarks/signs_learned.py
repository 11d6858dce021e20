"""The reader of signs that `watermark_signs` measures: what it learns from, how, and its one forward."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from inversion_pictures import each, jpeg
from torch import Tensor

import sd35
from mmdit import MMDiT
from sd35.noise import seeded
from sd35.tiny.captions import caption
from sd35.tiny.scenes import training_scene
from sd35.train.loop import Run, fit
from sd35.train.methods import FullTraining
from sd35.train.state import FILE, identity_of
from textenc import Encoding
from weights import load_mmdit

TOGETHER = 32
"""Pictures of a batch."""
FEW: Mapping[str, Any] = {"solver": "ab2", "steps": 8}
"""How they are drawn: 45 dB from 28 steps of Euler, for two fifths of the cost; PNG files are 46 dB off."""
EACH = 4
"""Pictures of a prompt."""
QUALITIES = 10, 95
"""Of the JPEG files, all equally likely."""
FIRST = 1_000_000
"""The seed of the first picture, far from the seeds of what is measured."""
LEVEL, TEXT = 0.0, 1
"""The noise level that the transformer is told (the last of a table, 0.0089, is as good), and tokens of the
empty prompt: all 154 cost three times."""


def draw_pairs(pipe: sd35.Pipeline, batch: range) -> dict[str, Tensor]:
    """Noise, and the latents of the PNG and the JPEG file of the picture that was drawn from it."""
    source = seeded(FIRST, batch.start // TOGETHER)
    prompts = [caption(training_scene(source), source) for _ in batch[::EACH]]
    how: dict[str, Any] = {"images_per_prompt": EACH, "seed": FIRST + batch.start, "batch_size": TOGETHER}
    drawn = pipe.generate(prompts, **how, **FEW)
    image = pipe.decode(drawn.latents)
    qualities = iter(torch.randint(*QUALITIES, (len(image),), generator=source).tolist())
    files = {"PNG": each(image, lambda one: one), "JPEG": each(image, lambda one: jpeg(one, next(qualities)))}
    return {"noise": drawn.noise} | {name: pipe.encode(one) for name, one in files.items()}


@torch.enable_grad()
def learn(folder: Path, pairs: dict[str, Tensor], empty: Encoding, steps: int) -> MMDiT:
    """The transformer, all of its weights trained on the pairs; every second batch are JPEG files."""
    mmdit = load_mmdit("tiny", dtype=torch.bfloat16).requires_grad_(True)
    positive = (pairs["noise"] > 0).float()

    def loss(number: int) -> Tensor:
        chosen = torch.randint(len(positive), (TOGETHER,), generator=seeded(0, number))
        latents = pairs[("PNG", "JPEG")[number % 2]][chosen]
        return F.binary_cross_entropy_with_logits(logits(mmdit, latents, empty), positive[chosen])

    training = FullTraining(steps=steps, batch_size=TOGETHER, learning_rate=1e-3, optimizer="muon")
    identity = identity_of("signs", training, pairs=str(len(positive)))
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, identity, resume=(folder / FILE).is_file(), progress=True)
    fit(dict(mmdit.named_parameters()), loss, training, run, export=lambda _: None)
    return mmdit


def logits(mmdit: MMDiT, latents: Tensor, empty: Encoding) -> Tensor:
    """Of each value of the noise being above 0, (B, 16, h, w)."""
    context, pooled = (one.expand(len(latents), *one.shape[1:]) for one in (empty.context, empty.pooled))
    return mmdit(latents, LEVEL, context[:, :TEXT], pooled)
