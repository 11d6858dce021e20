"""That the embedded model draws what it is told; `benchmarks/tiny.py` measures how well."""

import numpy as np
import pytest
import torch

import sd35
from sd35.train.autoencoder import pictures, psnr
from sd35.train.captions import parse
from sd35.train.fit import seeded
from weights.source import TINY

pytestmark = pytest.mark.skipif(
    not list(TINY.glob("*.safetensors")), reason="the embedded model's weights are not here"
)


@pytest.fixture(scope="module")
def tiny() -> sd35.Pipeline:
    return sd35.load("tiny")


PAIRS = [
    f"a {first} {kind} {relation} a {second} {kind} on a {background} background"
    for first, second, background in (("red", "blue", "white"), ("yellow", "cyan", "black"))
    for relation in ("above", "left of")
    for kind in ("circle", "square")
]


def test_pictures_show_what_their_prompts_say(tiny, judge) -> None:
    images = tiny.generate(PAIRS, guidance_scale=2.5, batch_size=8).images
    faults = [
        judge.disagreements(judge.read(np.asarray(image)), parse(prompt))
        for image, prompt in zip(images, PAIRS, strict=True)
    ]
    assert sum(not one for one in faults) >= len(PAIRS) - 1, faults


def test_the_autoencoder_gives_pictures_back(tiny) -> None:
    with torch.inference_mode():
        decibels = psnr(tiny.vae, pictures(seeded(1, 8), 16, torch.device("cpu")))
    assert decibels.mean() > 34
    assert decibels.min() > 28
