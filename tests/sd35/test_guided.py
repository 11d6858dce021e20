"""The guided velocity: what a sample gets does not depend on how it is batched."""

import copy

import pytest
import torch

import flow
from flow import guide
from sd35 import NonFiniteError, SettingsError, TapError, capture
from sd35.guided import current_evaluation, stepped

LONG = "a red circle on the left " * 16  # more than 77 tokens of T5, so a context of its own length


@pytest.fixture
def states():
    """x (3, 16, 4, 4) and sigma (3,)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 16, 4, 4, generator=generator), torch.full((3,), 0.7)


def test_it_is_the_guidance_of_two_velocities(pipe, states) -> None:
    x, sigma = states
    cond = pipe.velocity("a red circle", guidance_scale=1)(x, sigma)
    uncond = pipe.velocity("blurry", guidance_scale=1)(x, sigma)
    both = pipe.velocity("a red circle", "blurry", 4.5)(x, sigma)
    assert not torch.allclose(cond, uncond)
    torch.testing.assert_close(both, guide(cond, uncond, 4.5), rtol=1e-5, atol=1e-5)


def test_a_sample_is_the_same_alone_to_the_last_bit(pipe, states) -> None:
    x, sigma = states
    together = pipe.velocity(["a red circle", LONG, "a star"])(x, sigma)
    for index, prompt in enumerate(["a red circle", LONG, "a star"]):
        alone = pipe.velocity(prompt)(x[index : index + 1], sigma[index : index + 1])
        assert torch.equal(together[index : index + 1], alone)


@pytest.mark.parametrize("prompts", [["a", "b", "c"], ["a", LONG, "c"], ["a", "b", LONG], ["a"]])
def test_larger_batches_differ_by_rounding(pipe, states, prompts) -> None:
    one = pipe.velocity(prompts)(*states)
    for batch_size in (2, 3):
        several = pipe.velocity(prompts, batch_size=batch_size)(*states)
        torch.testing.assert_close(several, one, rtol=0, atol=2e-5 * float(one.abs().max()))


def test_hooks_are_told_what_each_row_is(pipe, states) -> None:
    seen = []
    handle = pipe.mmdit.register_forward_pre_hook(lambda *_: seen.append(current_evaluation()))
    try:
        velocity = pipe.velocity("a", batch_size=2)
        velocity.step = 5
        velocity(*states)
        pipe.velocity("a", LONG)(states[0][:1], states[1][:1])
    finally:
        handle.remove()
    assert [(one.samples, one.branches) for one in seen] == [
        ((0, 1, 0, 1), ("cond", "cond", "uncond", "uncond")),
        ((2, 2), ("cond", "uncond")),
        ((0,), ("cond",)),
        ((0,), ("uncond",)),
    ]
    assert (seen[0].step, seen[0].sigma) == (5, pytest.approx(0.7))
    assert current_evaluation() is None


def test_scale_one_costs_half(pipe, states) -> None:
    rows = []
    handle = pipe.mmdit.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        pipe.velocity("a", guidance_scale=1)(*states)
        pipe.velocity("a", interval=(0.0, 0.5))(*states)  # sigma is 0.7: outside, so not guided
    finally:
        handle.remove()
    assert rows == [1] * 6


def test_prompts_and_samples_must_be_as_many(pipe, states) -> None:
    with pytest.raises(SettingsError, match="2 prompts for a batch of 3"):
        pipe.velocity(["a", "b"])(*states)


def test_nan_names_stage_step_sigma_and_dtype(pipe, states) -> None:
    velocity = copy.deepcopy(pipe).velocity("a")
    velocity.mmdit.x_embedder.proj.bias[0] = torch.nan
    velocity.step = 3
    with pytest.raises(
        NonFiniteError, match=r"transformer gave .* at step 3, sigma 0\.7, in float32"
    ) as caught:
        velocity(*states)
    assert (caught.value.stage, caught.value.step, caught.value.dtype) == ("transformer", 3, torch.float32)


def test_steps_can_be_told_apart_where_they_are_taken_by_stepped(pipe, states) -> None:
    x, sigmas, velocity = states[0], flow.sigmas(3), pipe.velocity("a")
    with capture(pipe.mmdit, "output", steps=[1, 2], branch="cond") as taps:
        end = flow.last(stepped(flow.euler(velocity, x[:1], sigmas), range(3), velocity))
    assert [record.step for record in taps.records] == [1, 2]
    assert torch.equal(end.x, flow.solve(velocity, x[:1], sigmas))
    velocity.step = 0
    with (
        pytest.raises(
            TapError, match=r"steps \[1\] never came: .*; with pipe\.velocity, set `velocity\.step`"
        ),
        capture(pipe.mmdit, "output", steps=[1]),
    ):
        flow.solve(velocity, x[:1], sigmas)
