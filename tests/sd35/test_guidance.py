"""The variants of guidance, from the settings of a picture to the velocity."""

import json

import pytest
import torch

import flow
from flow import SkipLayer
from sd35 import Guidance, Settings, SettingsError
from sd35.evaluation import current_evaluation
from sd35.velocity import velocity_of
from textenc import Prompt

PROMPT, STEPS = "a red circle", 6
SKIP = SkipLayer(2.0, 0.1, 0.6, (1,))  # steps 1 to 3 of 6


@pytest.fixture
def states():
    """x (1, 16, 4, 4) and sigma (1,)."""
    return torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0)), torch.full((1,), 0.7)


def settings(**guidance) -> Settings:
    return Settings(prompts=(Prompt(PROMPT),), steps=STEPS, guidance=Guidance(**guidance))


def velocity(pipe, **guidance):
    one = settings(**guidance)
    return velocity_of(pipe.mmdit, one, pipe.encode_each(one))


def halves(pipe, x, sigma):
    return (pipe.velocity(prompt, guidance_scale=1)(x, sigma) for prompt in (PROMPT, ""))


def calls(pipe, run) -> list[tuple[int, tuple[str, ...]]]:
    """The step and the branches of each call of the transformer."""
    seen = []

    def note(*_) -> None:
        evaluation = current_evaluation()
        seen.append((evaluation.step, evaluation.branches))

    handle = pipe.mmdit.register_forward_pre_hook(note)
    try:
        run()
    finally:
        handle.remove()
    return seen


def test_plain_is_what_there_is_without_saying_anything(pipe, states) -> None:
    assert torch.equal(velocity(pipe)(*states), pipe.velocity(PROMPT)(*states))
    assert Guidance().to_dict() == {}


@pytest.mark.parametrize(
    ("rule", "combine"),
    [
        ({"rule": "cfg_zero"}, flow.cfg_zero),
        ({"rule": "apg"}, flow.apg()),
        ({"rule": "apg", "apg_parallel": 0.5, "apg_norm": 2.0}, flow.apg(0.5, 2.0)),
    ],
)
def test_a_rule_is_that_of_flow(pipe, states, rule, combine) -> None:
    x, sigma = states
    expected = combine(*halves(pipe, x, sigma), 4.5, x, sigma)
    torch.testing.assert_close(velocity(pipe, **rule)(x, sigma), expected, rtol=1e-5, atol=1e-5)


def test_blocks_to_skip_take_the_place_of_those_of_the_numbers() -> None:
    named = Guidance(skip_layer="diffusers", skipped=[0, 1])
    assert named == Guidance(skip_layer=SkipLayer(2.8, 0.01, 0.2, (0, 1)))
    assert Guidance.from_dict(json.loads(json.dumps(named.to_dict()))) == named


def test_rescaling_and_thresholding_follow_in_that_order(pipe, states) -> None:
    x, sigma = states
    cond, uncond = halves(pipe, x, sigma)
    v = flow.rescale(0.7)(flow.guide(cond, uncond, 4.5), cond, x, sigma)
    v = flow.threshold(0.9, 0.5)(v, cond, x, sigma)
    found = velocity(pipe, rescale=0.7, threshold=(0.9, 0.5))(x, sigma)
    torch.testing.assert_close(found, v, rtol=1e-5, atol=1e-5)


def test_outside_the_interval_a_step_costs_half(pipe) -> None:
    levels = settings().sigmas
    low, high = float(levels[3]), float(levels[1])
    one = settings(interval=(low, high))
    seen = calls(pipe, lambda: pipe.run(one))
    both, cond = ("cond", "uncond"), ("cond",)
    assert [branches for _, branches in seen] == [cond, both, both, both, cond, cond]


def test_skip_layer_guidance_adds_a_third_velocity_within_its_window(pipe, states) -> None:
    seen = calls(pipe, lambda: pipe.run(settings(skip_layer=SKIP)))
    assert [step for step, branches in seen if branches == ("skipped",)] == [1, 2, 3]

    x, _ = states
    sigma = settings().sigmas[2].expand(1)
    cond, uncond = halves(pipe, x, sigma)
    encoding = pipe.encode_prompt(PROMPT)
    skipped = pipe.mmdit(x, sigma, encoding.context, encoding.pooled, skip_layers=SKIP.layers)
    expected = flow.guide(cond, uncond, 4.5) + SKIP.scale * (cond - skipped)
    found = velocity(pipe, skip_layer=SKIP)(x, sigma)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_first_steps_may_stand_still(pipe) -> None:
    generation = pipe.steps(settings(zero_steps=2))
    states = [step.x for step in generation]
    assert torch.equal(states[0], generation.noise)
    assert torch.equal(states[1], generation.noise)
    assert not torch.equal(states[2], generation.noise)


def test_guidance_changes_the_picture_and_its_settings_repeat_it(pipe) -> None:
    one = settings(rule="cfg_zero", interval=(0.1, 0.9), rescale=0.5, threshold=(0.99, 3.0), skip_layer=SKIP)
    first = pipe.run(one)
    read = Settings.from_json(first.settings.to_json())
    assert read == first.settings
    assert torch.equal(pipe.run(read).image, first.image)
    assert not torch.equal(pipe.run(settings()).image, first.image)


def test_undoing_needs_the_guidance_of_the_generation(pipe) -> None:
    result = pipe.generate(
        PROMPT, steps=4, solver="reversible_heun", guidance=Guidance(rescale=0.5), guidance_scale=2
    )
    back = pipe.invert(result.state())
    assert back.losses["noise"].total_psnr > 90
    with pytest.raises(ValueError, match="guidance"):
        pipe.invert(result.state(), guidance=Guidance())


@pytest.mark.parametrize(
    ("guidance", "words"),
    [
        ({"rule": "cfg"}, "rule must be one of plain, cfg_zero, apg"),
        ({"interval": (0.5, 0.5)}, "interval must be two rising noise levels"),
        ({"interval": (0.1,)}, "interval must be 2 numbers"),
        ({"interval": (0.1, float("nan"))}, "interval must be 2 numbers"),
        ({"rescale": 1.5}, r"rescale must be in \[0, 1\]"),
        ({"zero_steps": -1}, "zero_steps must be a whole number"),
        ({"threshold": (2.0, 1.0)}, "percentile must be in"),
        ({"skipped": (2,)}, "skipped has no effect here, only with skip-layer guidance"),
        ({"apg_norm": 3.0}, "apg_norm has no effect here, only with the rule apg"),
        ({"rule": "apg", "apg_norm": 0.0}, "apg_norm must be positive"),
    ],
)
def test_what_is_out_of_range_is_refused(guidance, words) -> None:
    with pytest.raises(ValueError, match=words):
        Guidance(**guidance)


def test_what_does_not_fit_the_model_or_the_steps_is_refused_before_anything_is_drawn(pipe) -> None:
    with pytest.raises(SettingsError, match=r"leaves out blocks \[7, 8, 9\], and .* has 0 to 1"):
        pipe.steps(settings(skip_layer="reference"))
    with pytest.raises(SettingsError, match="zero_steps must be fewer than the 6 steps"):
        pipe.steps(settings(zero_steps=6))


def test_a_damaged_description_is_refused() -> None:
    with pytest.raises(SettingsError, match="saved guidance is damaged"):
        Guidance.from_dict({"rescaling": 1})
    with pytest.raises(SettingsError, match="saved guidance is damaged"):
        Guidance.from_dict(json.loads('{"skip_layer": {"scale": 1}}'))
    with pytest.raises(SettingsError, match="skip_layer must be one of reference, diffusers"):
        Guidance(skip_layer="stability")
