"""From a picture under one prompt to a picture under another."""

import copy
from functools import partial
from itertools import groupby

import pytest
import torch

import flow
from sd35 import NonFiniteError, SettingsError, State, capture
from sd35.methods import EditMethod

FIELD = {"steps": 4, "guidance_scale": 2.0}
OWN = {"steps": 4, "guidance_scale": 2.0, "source_guidance_scale": 2.0}


def own(method: str) -> dict:
    """What tells of the picture; rf_inversion goes up without a prompt."""
    return FIELD if method == "rf_inversion" else OWN | {"source_prompt": "a red circle"}


METHODS: list[EditMethod] = ["inversion", "direct_edit", "flow_edit", "rf_inversion"]


@pytest.fixture(scope="module")
def result(pipe):
    return pipe.generate("a red circle", seed=4, **FIELD)


def psnr(found: torch.Tensor, true: torch.Tensor) -> float:
    return flow.closeness(found, true).total_psnr


def test_the_same_prompt_leaves_the_picture_as_it_is(pipe, result) -> None:
    by_inversion = pipe.edit(result.latents, "a red circle", "a red circle", **OWN)
    assert psnr(by_inversion.latents, result.latents) > 60
    for options in ({"method": "flow_edit", "seed": 9}, {"method": "direct_edit"}):
        edited = pipe.edit(result.latents, "a red circle", "a red circle", **options, **OWN)
        assert psnr(edited.latents, result.latents) > 100  # the same sums, to rounding


def test_accuracy_is_that_of_the_inverse(pipe, result) -> None:
    rough, fine = (
        pipe.edit(result.latents, "a red circle", "a red circle", accuracy=accuracy, **OWN).latents
        for accuracy in (0.3, 1e-6)
    )
    assert psnr(rough, result.latents) < psnr(fine, result.latents) - 10


def test_full_control_returns_to_the_picture(pipe, result) -> None:
    edit = partial(pipe.edit, result.latents, "b", method="rf_inversion", **FIELD)
    held = edit(eta=1.0, eta_interval=(0.0, 1.0))
    assert psnr(held.latents, result.latents) > 60
    loose = edit(eta=0)
    assert psnr(loose.latents, result.latents) < 40


@pytest.mark.parametrize("method", METHODS)
def test_another_prompt_draws_another_picture_and_less_strength_one_nearer(pipe, result, method) -> None:
    whole, part = (
        pipe.edit(result.latents, "a blue star", method=method, strength=strength, **own(method))
        for strength in (1.0, 0.25)
    )
    assert psnr(whole.latents, result.latents) < psnr(part.latents, result.latents)
    assert torch.equal(whole.image, pipe.decode(whole.latents))
    assert whole.settings.prompts[0].text == "a blue star"


@pytest.mark.parametrize("method", ["flow_edit", "rf_inversion"])
def test_the_seed_decides_what_is_drawn(pipe, result, method) -> None:
    first, again, other = (
        pipe.edit(result.latents, "b", method=method, seed=seed, **own(method)).latents for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_saved_state_needs_no_source(pipe) -> None:
    made = pipe.generate(["a", "b"], seed=4, solver="bitexact", **FIELD)
    same = pipe.edit(made.state(), ["a", "b"])
    assert torch.equal(same.latents, made.latents)
    one_for_all = pipe.edit(made.state(), "c")
    assert one_for_all.latents.shape == made.latents.shape
    assert [prompt.text for prompt in one_for_all.settings.prompts] == ["c"]


def test_a_pair_without_companion_is_inverted_roughly_and_says_so(pipe, result) -> None:
    edited = pipe.edit(result.latents, "b", "a", solver="reversible_heun", **OWN)
    assert "its inverse is approximate" in edited.notes[0]


def test_a_picture_is_encoded_first(pipe, result) -> None:
    edited = pipe.edit(result.images[0], "a red circle", "a red circle", method="flow_edit", **OWN)
    assert psnr(edited.latents, pipe.encode(result.images[0])) > 100


def test_pictures_are_saved_without_settings(pipe, result, tmp_path) -> None:
    edited = pipe.edit(result.latents, "b", "a", method="flow_edit", **OWN)
    (path,) = edited.save(tmp_path / "edited.png")
    with pytest.raises(FileExistsError):
        edited.save(path)
    from sd35 import read_settings

    with pytest.raises(SettingsError, match="holds no settings"):
        read_settings(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "wish"},
            "method must be one of inversion, direct_edit, flow_edit, rf_inversion; got 'wish'",
        ),
        ({"solver": "sde"}, "an edit needs a solver without"),
        ({"strength": 0.0}, "strength must be above 0"),
        ({"width": 64}, "width: that is told by the picture itself"),
        ({"method": "flow_edit", "solver": "heun"}, "solver has no effect here, only with inversion and rf"),
        ({"seed": 3}, "seed has no effect here, only with flow_edit"),
        ({"negative": "c", "guidance_scale": 1}, "negative has no effect here, only with a guidance scale"),
        ({"colour": 1}, "there is no setting colour; there are precision, method, strength"),
        ({"average": 0, "method": "flow_edit"}, "average must be a whole number of at least 1"),
        (
            {"accuracy": 1e-3, "method": "flow_edit"},
            "accuracy has no effect here, only with the method inversion",
        ),
        (
            {"accuracy": 1e-3, "solver": "bitexact"},
            "accuracy has no effect here, only with the method inversion",
        ),
        ({"accuracy": 0.0}, "accuracy must be positive"),
        ({"gamma": 0.5}, "gamma has no effect here, only with rf_inversion"),
        (
            {"method": "direct_edit", "seed": 3},
            "seed has no effect here, only with flow_edit",
        ),
        (
            {"method": "direct_edit", "solver": "heun"},
            "solver has no effect here, only with inversion",
        ),
        ({"method": "direct_edit", "accuracy": 0.1}, "accuracy has no effect here, only with the method inv"),
        (
            {"average": 2, "method": "rf_inversion"},
            "average has no effect here, only with flow_edit",
        ),
        (
            {"eta": 2, "method": "rf_inversion"},
            r"eta must be in \[0, 1\], got 2",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_work(pipe, result, monkeypatch, options, message) -> None:
    def fail(*_arguments) -> None:
        pytest.fail("the transformer ran")

    monkeypatch.setattr("sd35.velocity.GuidedVelocity.__call__", fail)
    with pytest.raises(ValueError, match=message):
        pipe.edit(result.latents, "b", **(own(options.get("method", "")) | options))


def test_prompts_and_companions_must_fit(pipe, result) -> None:
    with pytest.raises(SettingsError, match="which prompt was it drawn from"):
        pipe.edit(result.latents, "b")
    with pytest.raises(SettingsError, match="a prompt for each of 1 pictures, got 2"):
        pipe.edit(result.latents, ["b", "c"], "a")
    with pytest.raises(SettingsError, match="noise and no latents"):
        pipe.edit(State(result.settings, noise=result.noise), "b")
    made = pipe.generate("a", solver="reversible_heun", **FIELD)
    with pytest.raises(SettingsError, match="a companion is of use to the method inversion at strength 1"):
        pipe.edit(made.state(), "b", strength=0.5, companion=made.companion)


@pytest.mark.parametrize(
    ("method", "order"),
    [
        ("inversion", [3, 2, 1, 0, 1, 2, 3]),
        ("direct_edit", [3, 2, 1, 0, 1, 2, 3]),
        ("flow_edit", [0, 1, 2, 3]),
        ("rf_inversion", [3, 2, 1, 0, 1, 2, 3]),
    ],
)
def test_hooks_can_tell_the_steps_apart(pipe, result, method, order) -> None:
    edit = partial(pipe.edit, result.latents, "b", method=method, **own(method))
    with capture(pipe.mmdit, "output", branch="cond", reduce=torch.linalg.norm) as taps:
        edit()
    assert [step for step, _ in groupby(record.step for record in taps.records)] == order
    with capture(pipe.mmdit, "output", steps=[3], reduce=torch.linalg.norm) as taps:
        edit()
    assert {record.step for record in taps.records} == {3}


def test_nan_names_its_step(pipe, result) -> None:
    calls = []

    def spoil(_module, _inputs, output):
        calls.append(None)
        return output * torch.nan if len(calls) == 5 else output

    copied = copy.deepcopy(pipe)
    copied.mmdit.register_forward_hook(spoil)
    with pytest.raises(NonFiniteError, match="at step 2"):  # two evaluations a step
        copied.edit(result.latents, "b", "a", method="flow_edit", **OWN)


@pytest.mark.parametrize("method", ["inversion", "rf_inversion"])
def test_both_halves_show_how_far_they_are(pipe, result, capsys, method) -> None:
    pipe.edit(result.latents, "b", method=method, progress=True, **own(method))
    out, err = capsys.readouterr()
    assert out == ""
    last = [line for line in err.replace("\r", "\n").splitlines() if "4/4" in line]
    halves = groupby(line.startswith("inverting") for line in last)  # a slow bar shows its end twice
    assert [inverting for inverting, _ in halves] == [True, False]


def test_a_reversible_state_can_be_edited_in_other_ways_too(pipe) -> None:
    drawn = pipe.generate("a red circle", seed=4, solver="reversible_heun", **FIELD)
    for options in ({"method": "flow_edit"}, {"strength": 0.5}):
        assert pipe.edit(drawn.state(), "a blue star", **options).image.isfinite().all()


def test_a_pull_that_never_acts_is_told(pipe, result) -> None:
    held = {"method": "rf_inversion", **FIELD}
    assert "which is never" in pipe.edit(result.latents, "b", strength=0.25, **held).notes[0]
    assert pipe.edit(result.latents, "b", strength=1.0, **held).notes == ()
