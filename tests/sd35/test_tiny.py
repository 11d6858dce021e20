"""The embedded model, through the same code as every other."""

import numpy as np
import pytest

import flow
import sd35
from sd35.tiny.captions import held_out_prompts
from weights.source import TINY

pytestmark = pytest.mark.skipif(
    not list(TINY.glob("*.safetensors")), reason="the embedded model's weights are not here"
)


@pytest.fixture(scope="module")
def tiny() -> sd35.Pipeline:
    return sd35.load("tiny")


def test_it_draws_at_its_own_size_what_it_is_told(tiny) -> None:
    assert tiny.size == (128, 128)
    picture = np.asarray(
        tiny.generate("a large red circle in the centre on a white background").images[0], int
    )
    centre, corner = picture[64, 64], picture[4, 4]
    assert centre[0] > 150
    assert centre[1:].max() < 120
    assert corner.min() > 200


def test_a_batch_is_its_images_alone(tiny) -> None:
    batch = tiny.generate(["a blue star", "a green ring"], steps=4, seed=1)
    alone = tiny.generate("a green ring", steps=4, seed=2)
    assert np.array_equal(np.asarray(batch.images[1]), np.asarray(alone.images[0]))


def test_guided_at_high_noise_alone_and_limited_it_is_inverted_at_twice_the_steps(tiny) -> None:
    prompts = held_out_prompts(2, shapes=1, seed=1)
    guidance = {"interval": (0.7, 1.0), "rule": "apg", "apg_parallel": 1.0, "apg_norm": 5.0}
    given = {"seed": 0, "schedule": "tailed", "guidance": guidance, "batch_size": 2}
    drawn = tiny.generate(prompts, **given)
    coarse = {"accuracy": 1e-2, "method_options": {"check": False}, "measure": False}
    found = tiny.invert(drawn.latents, prompts, **given, **coarse)
    assert found.report.mean_evaluations <= 2 * 28
    assert found.report.problems == ()
    assert flow.closeness(found.noise, drawn.noise).psnr.min() > 50


def test_the_file_is_as_small_as_promised() -> None:
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) <= 32e6
