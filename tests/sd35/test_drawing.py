"""That the embedded model draws what it is told; `benchmarks/tiny.py` measures how well."""

import numpy as np
import pytest
import torch

import flow
import sd35
from sd35.noise import generators, seeded
from sd35.tiny.autoencoder import pictures, psnr
from sd35.tiny.captions import parse
from weights.source import TINY

pytestmark = pytest.mark.skipif(
    not list(TINY.glob("*.safetensors")), reason="the embedded model's weights are not here"
)


@pytest.fixture(scope="module")
def tiny() -> sd35.Pipeline:
    return sd35.load("tiny")


PAIRS = [
    "a red circle above a blue circle on a white background",
    "a red square left of a blue square on a white background",
    "a yellow circle left of a cyan circle on a black background",
    "a yellow square above a cyan square on a black background",
]
"""Each relation with each kind and each pair of colours."""


def test_pictures_show_what_their_prompts_say(tiny, judge) -> None:
    images = tiny.generate(PAIRS, steps=10, batch_size=len(PAIRS)).images
    faults = [
        judge.disagreements(judge.read(np.asarray(image)), parse(prompt))
        for image, prompt in zip(images, PAIRS, strict=True)
    ]
    assert not any(faults), faults


PLACE = "a large red square on the left on a white background"


def test_an_edit_changes_the_colour_and_leaves_the_rest(tiny, judge) -> None:
    wanted = PLACE.replace("red", "blue")
    drawn = tiny.generate(PLACE, steps=10)
    edited = tiny.edit(drawn.state(), wanted, accuracy=1e-2)
    before, after = np.asarray(drawn.images[0]), np.asarray(edited.images[0])
    assert not judge.disagreements(judge.read(after), parse(wanted))
    (here,), (there,) = judge.read(before).shapes, judge.read(after).shapes
    assert np.hypot(here.x - there.x, here.y - there.y) < 0.02
    ground = np.linalg.norm(before - 255.0, axis=-1) < 30
    # Even the grain, of 0 to 255: it moves by 0.4, and by 3.5 where the noise is not that of the picture.
    assert np.abs(before[ground] - after[ground].astype(float)).mean() < 1


def test_leapfrog_stays_beside_euler(tiny) -> None:
    velocity = tiny.velocity(PAIRS[0], guidance_scale=1.0)
    noise = sd35.draw_noise(generators(range(1)), tiny.latents_shape(None, None))
    table = flow.sigmas(14)
    with torch.inference_mode():
        true = flow.solve(velocity, noise, flow.sigmas(8, preset="tailed"), "rk4")  # to 76 dB
        leapfrog, euler = (flow.solve(velocity, noise, table, solver) for solver in ("leapfrog", "euler"))
    # 54.4 and 40.4 dB.
    assert flow.closeness(leapfrog, true).total_psnr > flow.closeness(euler, true).total_psnr + 10


def test_the_autoencoder_gives_pictures_back(tiny) -> None:
    with torch.inference_mode():
        decibels = psnr(tiny.vae, pictures(seeded(1, 8), 4, torch.device("cpu")))
    assert decibels.mean() > 36.5
    assert decibels.min() > 35
