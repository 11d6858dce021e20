"""The guided velocity: what a sample gets does not depend on how it is batched."""

import copy

import pytest
import torch

import flow
from flow import guide
from sd35 import SettingsError, TapError, capture
from sd35.conditions import Call
from sd35.evaluation import current_evaluation
from sd35.velocity import GuidedVelocity

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
        velocity = pipe.velocity("a", batch_size=2, sigmas=flow.sigmas(8))
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
    assert (seen[0].step, seen[0].sigma) == (3, pytest.approx(0.7))  # from 0.83 to 0.68
    assert seen[2].step is None
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


@pytest.mark.parametrize("sigma", [500.0, -0.1, torch.tensor([0.5, 0.5, 1.5]), float("nan")])
def test_what_is_no_noise_level_is_refused(pipe, states, sigma) -> None:
    with pytest.raises(SettingsError, match=r"sigma is the noise level, in \[0, 1\]"):
        pipe.velocity("a")(states[0], sigma)


def test_one_noise_level_serves_all_samples(pipe, states) -> None:
    x, sigma = states
    velocity = pipe.velocity("a")
    for one in (0.7, torch.tensor(0.7), torch.tensor([0.7])):
        assert torch.equal(velocity(x, one), velocity(x, sigma))
    with pytest.raises(SettingsError, match=r"a number or \(B,\) = \(3,\)"):
        velocity(x, torch.full((2,), 0.7))


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "reversible_heun"])
def test_the_step_is_found_from_sigma(pipe, states, solver) -> None:
    x, sigmas = states[0][:1], flow.sigmas(3)
    velocity = pipe.velocity("a", sigmas=sigmas)
    with capture(pipe.mmdit, "output", steps=[1, 2], branch="cond") as taps:
        end = flow.solve(velocity, x, sigmas, solver)
    assert {record.step for record in taps.records} == {1, 2}
    assert [record.step for record in taps.records] == sorted(record.step for record in taps.records)
    assert torch.equal(end, flow.solve(pipe.velocity("a"), x, sigmas, solver))


def test_without_a_table_there_are_no_steps(pipe, states) -> None:
    with (
        pytest.raises(TapError, match=r"through pipe\.velocity with sigmas="),
        capture(pipe.mmdit, "output", steps=[1]),
    ):
        flow.solve(pipe.velocity("a"), states[0], flow.sigmas(3))
    with capture(pipe.mmdit, "output", branch="cond") as taps:
        pipe.velocity("a")(*states)
    assert {record.step for record in taps.records} == {None}


def test_conditions_stand_between_guidance_and_the_transformer(pipe, states) -> None:
    seen: list[Call] = []

    def watch(call, run):
        seen.append(call)
        return run(call)

    def answer(call, run):
        return torch.full_like(call.latents, 3.0)

    plain = pipe.velocity("a")(*states)
    assert torch.equal(pipe.velocity("a", conditions=[watch])(*states), plain)
    assert [call.evaluation.branches for call in seen] == 3 * [("cond", "uncond")]
    guided = pipe.velocity("a", conditions=[watch, answer])(*states)
    assert torch.equal(guided, torch.full_like(plain, 3.0))
    assert len(seen) == 6  # the first one is nearest to guidance


def test_residuals_of_several_add_up(pipe, states) -> None:
    x, sigma = states[0][:1], states[1][:1]
    depth, tokens = pipe.mmdit.config.depth, torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(1))

    def adding(*residuals):
        return lambda call, run: run(call.with_residuals(residuals, depth))

    one, other = 0.1 * tokens[:1], 0.2 * tokens[1:]
    both = pipe.velocity("a", guidance_scale=1, conditions=[adding(one), adding(other, None)])(x, sigma)
    encoding = pipe.encode_prompt("a")
    expected = pipe.mmdit(x, sigma, encoding.context, encoding.pooled, residuals=[one + other, one])
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 1}, {"combine": flow.cfg_zero}])
def test_a_call_waits_for_nothing_on_the_device(pipe, guidance) -> None:
    """Tensors of the meta device have no values: whatever would read one fails."""
    mmdit = copy.deepcopy(pipe.mmdit).to("meta")
    encoding = pipe.encode_prompt("a").to("meta")
    sigmas = flow.sigmas(4)
    scale = guidance.pop("guidance_scale", 4.5)
    velocity = GuidedVelocity(mmdit, [encoding], encoding, scale, sigmas=sigmas, **guidance)
    x = torch.zeros(2, 16, 4, 4, device="meta")
    assert velocity(x, sigmas[:1].to("meta").expand(2)).shape == x.shape


def test_texts_are_put_together_once(pipe, states, monkeypatch) -> None:
    velocity = pipe.velocity("a", "b")
    velocity(*states)
    made = []
    cat = torch.cat
    monkeypatch.setattr(
        torch, "cat", lambda tensors, *rest, **more: made.append(1) or cat(tensors, *rest, **more)
    )
    velocity.mmdit = lambda latents, *_, **__: latents
    velocity(*states)
    assert len(made) == 1  # of the samples' velocities


def test_a_part_is_the_whole_at_its_samples(pipe, states) -> None:
    x, sigma = states
    whole = pipe.velocity(["a red circle", LONG, "a star"])
    part, seen = whole.part([2, 0]), []

    def note(call: Call, run):
        seen.append(call.evaluation.samples)
        return run(call)

    assert torch.equal(part(x[[2, 0]], sigma[[2, 0]]), whole(x, sigma)[[2, 0]])
    pipe.velocity(["a red circle", LONG, "a star"], conditions=[note]).part([1, 2])(x[[1, 2]], sigma[[1, 2]])
    assert {*sum(seen, ())} == {1, 2}  # under the numbers that they have in the whole
