"""How well the embedded model draws: a small part of what `benchmarks/tiny.py` measures.

The bounds lie under the measured figures by what a sample of this size can miss by chance.
"""

import numpy as np
import pytest
import torch

import sd35
from sd35.train.autoencoder import pictures, psnr
from sd35.train.captions import held_out_prompts, parse
from sd35.train.fit import seeded
from weights.source import TINY

pytestmark = pytest.mark.skipif(
    not list(TINY.glob("*.safetensors")), reason="the embedded model's weights are not here"
)


@pytest.fixture(scope="module")
def tiny() -> sd35.Pipeline:
    return sd35.load("tiny")


@pytest.mark.parametrize(("shapes", "least"), [(1, 0.75), (2, 0.5)])
def test_pictures_obey_prompts_that_training_never_saw(tiny, judge, shapes: int, least: float) -> None:
    prompts = held_out_prompts(24, shapes=shapes, seed=0)
    images = tiny.generate(prompts, batch_size=24).images
    wrong = {
        prompt: complaints
        for image, prompt in zip(images, prompts, strict=True)
        if (complaints := judge.disagreements(judge.read(np.asarray(image)), parse(prompt)))
    }
    assert len(wrong) <= (1 - least) * len(prompts), wrong


def test_the_autoencoder_gives_pictures_back(tiny) -> None:
    with torch.inference_mode():
        decibels = psnr(tiny.vae, pictures(seeded(1, 8), 16, torch.device("cpu")))
    assert decibels.mean() > 30
    assert decibels.min() > 25
