"""Skip-layer guidance takes part in the reference's steps, with its formula."""

import json

import pytest
import torch
from safetensors import safe_open

from flow import SKIP_LAYER, FlowError, SkipLayer, guided, sigmas, skip_layer, solve


def test_steps_are_counted_strictly():
    reference = SKIP_LAYER["reference"]
    assert list(reference.steps(50)) == list(range(1, 10))
    assert list(reference.steps(28)) == [1, 2, 3, 4, 5]
    assert list(SkipLayer(2.5, 0.1, 0.5, ()).steps(10)) == [2, 3, 4]  # neither 1 nor 5
    assert list(SkipLayer(2.5, 0.0, 1.0, ()).steps(4)) == [1, 2, 3]
    assert list(reference.steps(4)) == []


def test_steps_are_those_of_the_reference_run(shared_reference):
    with safe_open(shared_reference / "parity" / "guidance_cfg_slg.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    ran = [step for solver, step in config["steps_where_skip_pass_ran"] if solver == "euler"]
    settings = SkipLayer(
        config["slg_scale"], config["slg_start"], config["slg_end"], tuple(config["slg_layers"])
    )
    assert list(settings.steps(config["steps"])) == ran


def test_values_are_the_references(shared_reference):
    with safe_open(shared_reference / "parity" / "guidance_cfg_slg.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        sigma, x = file.get_tensor("in/sigma_single"), file.get_tensor("in/noise")
        golden = {
            name: file.get_tensor(f"out/denoised_{name}")
            for name in ("cond", "uncond", "skip", "cfg", "slg_active")
        }
    cond, uncond, skip = (lambda x, s, v=(x - golden[name]) / sigma: v for name in ("cond", "uncond", "skip"))
    table = torch.tensor([1.0, float(sigma), 0.0]) if sigma < 1 else torch.tensor([1.0, 0.5, 0.0])
    push = skip_layer(skip, SkipLayer(config["slg_scale"], 0.0, 1.0, ()), table)
    level = table[1].expand(1)  # a level inside the window; the stored velocities are constants here
    plain = guided(cond, uncond, config["cond_scale"])(x, level)
    full = guided(cond, uncond, config["cond_scale"], adjust=[push])(x, level)
    for name, v in (("cfg", plain), ("slg_active", full)):
        assert (x - sigma * v - golden[name]).abs().max() <= 2e-6 * golden[name].abs().max()


def with_skip(velocity, skipped, settings, table):
    """Guided by twice itself, which changes nothing, and by the third velocity."""
    return guided(velocity, velocity, 2.0, adjust=[skip_layer(skipped, settings, table)])


def test_third_velocity_is_evaluated_in_the_window_only(gaussian, noise_for, counted):
    skipped, table = counted(gaussian), sigmas(28)
    solve(with_skip(gaussian, skipped, SKIP_LAYER["reference"], table), noise_for(1), table)
    assert skipped.sigmas == pytest.approx(table[1:6].tolist())


def test_window_holds_between_levels_too(gaussian, noise_for, counted):
    skipped, table = counted(gaussian), sigmas(28)
    solve(with_skip(gaussian, skipped, SKIP_LAYER["reference"], table), noise_for(1), table, "midpoint")
    assert len(skipped.sigmas) == 9  # five levels and the four middles between them


def test_adds_the_difference_and_leaves_other_samples_alone(noise_for):
    settings, table = SkipLayer(2.0, 0.1, 0.6, (1,)), torch.linspace(1, 0, 11)
    cond, skipped = (lambda x, s, c=c: torch.full_like(x, c) for c in (3.0, 2.5))
    v = with_skip(cond, skipped, settings, table)(noise_for(2), torch.tensor([0.7, 0.2]))
    assert torch.equal(v[0], torch.full((4, 4, 4), 3.0 + 2.0 * 0.5))
    assert torch.equal(v[1], torch.full((4, 4, 4), 3.0))


def test_no_step_in_the_window_is_no_guidance(gaussian, noise_for, counted):
    skipped, table = counted(gaussian), sigmas(4)
    solve(with_skip(gaussian, skipped, SKIP_LAYER["reference"], table), noise_for(1), table)
    assert skipped.calls == 0


def test_bad_settings_are_refused(gaussian):
    for settings in (SkipLayer(2.5, 0.5, 0.2, ()), SkipLayer(float("nan"), 0.1, 0.2, ())):
        with pytest.raises(FlowError, match="start < stop"):
            skip_layer(gaussian, settings, sigmas(4))
