"""A companion can be saved as tensors and JSON, and is refused where it does not belong."""

import json
from dataclasses import replace

import pytest
import torch

from flow import Companion, FlowError, companion_of, integrate, invert, last, reversible_heun, sigmas

TABLE = sigmas(6)


@pytest.fixture(scope="module")
def generation(toy, noise_for):
    return integrate(
        toy(), noise_for(2), TABLE, "leapfrog", damping=0.95, extra={"prompt": "a star", "scale": 4.5}
    )


def undo(toy, generation, **changes):
    call = {
        "sigmas": TABLE,
        "solver": "leapfrog",
        "damping": 0.95,
        "extra": {"prompt": "a star", "scale": 4.5},
    }
    return invert(toy(), generation.x, companion=generation.companion, **(call | changes))


def test_survives_being_saved(toy, generation, noise_for):
    settings = json.loads(json.dumps(generation.companion.settings))
    assert all(isinstance(tensor, torch.Tensor) for tensor in generation.companion.tensors.values())
    saved = replace(generation, companion=Companion(dict(generation.companion.tensors), settings))
    assert saved.companion.fingerprint == generation.companion.fingerprint
    assert torch.allclose(undo(toy, saved), noise_for(2), atol=1e-4)
    table = torch.tensor(settings["sigmas"])  # a file needs nothing beside it
    assert torch.equal(table, TABLE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"extra": {"prompt": "a ring", "scale": 4.5}},
            'prompt: "a star" in the companion, "a ring" here$',
        ),
        ({"damping": 0.9}, r'options: {"damping": 0.95} in the companion, {"damping": 0.9} here'),
        ({"sigmas": sigmas(7)}, "sigmas: "),
        ({"solver": "reversible_heun"}, 'solver: "leapfrog" in the companion, "reversible_heun" here'),
        ({"extra": None}, 'prompt: "a star" in the companion, null here; scale: 4.5'),
    ],
)
def test_is_refused_with_other_settings(toy, generation, changes, message):
    with pytest.raises(FlowError, match=message) as caught:
        undo(toy, generation, **changes)
    assert "\n" not in str(caught.value)


def test_is_refused_with_other_latents(toy, generation):
    with pytest.raises(FlowError, match=r"shape: \[2, 4, 4, 4\] in the companion, \[1, 4, 4, 4\] here"):
        undo(toy, replace(generation, x=generation.x[:1]))
    with pytest.raises(FlowError, match='dtype: "float32" in the companion, "float64" here'):
        undo(toy, replace(generation, x=generation.x.double()))


def test_is_made_from_a_run_that_the_caller_steps_through(toy, noise_for):
    step = last(reversible_heun(toy(), noise_for(2), TABLE))
    stepped = companion_of(step, TABLE, "reversible_heun", extra={"seed": 3})
    whole = integrate(toy(), noise_for(2), TABLE, "reversible_heun", extra={"seed": 3}).companion
    assert stepped.fingerprint == whole.fingerprint


def test_euler_leaves_none(toy, noise_for):
    there = integrate(toy(), noise_for(2), TABLE)
    assert there.companion is None
    assert there.log_prob is None


def test_settings_that_cannot_be_saved_are_refused(toy, noise_for):
    with pytest.raises(FlowError, match="JSON"):
        integrate(toy(), noise_for(2), TABLE, "bdia", extra={"model": object()})
