"""That the embedded model draws what it is told; `benchmarks/tiny.py` measures how well."""

import numpy as np
import pytest
import torch

import sd35
from sd35.train.autoencoder import pictures, psnr
from sd35.train.fit import seeded
from weights.source import TINY

pytestmark = pytest.mark.skipif(
    not list(TINY.glob("*.safetensors")), reason="the embedded model's weights are not here"
)


@pytest.fixture(scope="module")
def tiny() -> sd35.Pipeline:
    return sd35.load("tiny")


PAIRS = {
    f"a {first} {kind} {relation} a {second} {kind} on a {background} background": (first, second, relation)
    for first, second, background in (("red", "blue", "white"), ("yellow", "cyan", "black"))
    for relation in ("above", "left of")
    for kind in ("circle", "square")
}


def test_pictures_have_the_colours_and_the_order_of_the_prompt(tiny, judge) -> None:
    images = tiny.generate(list(PAIRS), batch_size=8).images
    right = 0
    for image, (first, second, relation) in zip(images, PAIRS.values(), strict=True):
        found = {shape.colour: shape for shape in judge.read(np.asarray(image)).shapes}
        if first in found and second in found:
            one, other = found[first], found[second]
            right += one.y < other.y - 0.15 if relation == "above" else one.x < other.x - 0.15
    assert right >= len(PAIRS) - 1


def test_the_autoencoder_gives_pictures_back(tiny) -> None:
    with torch.inference_mode():
        decibels = psnr(tiny.vae, pictures(seeded(1, 8), 16, torch.device("cpu")))
    assert decibels.mean() > 30
    assert decibels.min() > 25
