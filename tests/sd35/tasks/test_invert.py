"""From pictures and latents back to noise."""

import copy
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch

import flow
from sd35 import SettingsError, State, capture, load

STEPS = 4
FIELD = {"steps": STEPS, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def result(pipe):
    return pipe.generate("a red circle", seed=4, **FIELD)


def test_latents_return_to_their_noise(pipe, result) -> None:
    inverted = pipe.invert(result.latents, "a red circle", seed=4, accuracy=1e-5, **FIELD)
    assert set(inverted.losses) == {"solver", "noise"}
    assert inverted.losses["noise"].total_psnr > 80
    assert inverted.losses["solver"].total_psnr > 80
    assert torch.allclose(inverted.noise, result.noise, atol=1e-2)
    assert inverted.report.converged
    assert inverted.notes == ()
    naive = pipe.invert(result.latents, "a red circle", seed=4, method="naive", **FIELD)
    assert naive.report.evaluations == STEPS
    assert naive.losses["noise"].total_psnr < inverted.losses["noise"].total_psnr - 10


@pytest.mark.parametrize("solver", ["reversible_heun", "bitexact"])
def test_a_reversible_generation_is_undone(pipe, solver) -> None:
    made = pipe.generate(["a", "b"], seed=4, solver=solver, **FIELD)
    inverted = pipe.invert(
        made.latents, ["a", "b"], seed=4, solver=solver, companion=made.companion, measure=False, **FIELD
    )
    assert inverted.report.method == "undo"
    assert set(inverted.losses) == {"noise"}
    if solver == "bitexact":
        assert torch.equal(inverted.noise, made.noise)
    else:
        assert inverted.losses["noise"].total_psnr > 100


def test_a_companion_of_another_generation_is_refused(pipe) -> None:
    made = pipe.generate("a", solver="reversible_heun", **FIELD)
    with pytest.raises(flow.FlowError, match="belongs to another generation"):
        pipe.invert(made.latents, "b", solver="reversible_heun", companion=made.companion, **FIELD)


def test_each_loss_of_a_picture_is_measured_by_itself(pipe, result) -> None:
    inverted = pipe.invert(result.images[0], "a red circle", noise=result.noise, refine_steps=2, **FIELD)
    assert set(inverted.losses) == {"encoder", "refined", "rounding", "solver", "noise"}
    assert inverted.losses["refined"].total_psnr > inverted.losses["encoder"].total_psnr
    # Rounding to 256 levels of [-1, 1]: an error uniform within ±1/255, of which 4 is the squared range.
    assert inverted.losses["rounding"].total_psnr == pytest.approx(58.9, abs=1.5)
    assert str(inverted).splitlines()[0].split() == ["stage", "PSNR", "dB", "cosine", "MSE", "range"]
    assert len(str(inverted).splitlines()) == 6


def test_what_is_none_of_the_settings_is_refused(pipe, result) -> None:
    with pytest.raises(SettingsError, match=r"expected pictures .* got torch\.float32 \(1, 4, 4, 4\)"):
        pipe.invert(torch.zeros(1, 4, 4, 4), "a")
    with pytest.raises(SettingsError, match="a picture of 40 x 32 is none of this model's"):
        pipe.invert(torch.zeros(1, 3, 32, 40), "a")
    with pytest.raises(SettingsError, match="width: that is told by the picture itself"):
        pipe.invert(result.latents, "a", width=64)
    with pytest.raises(SettingsError, match="settings are those of 2 pictures, got 1"):
        pipe.invert(result.latents, ["a", "b"])
    with pytest.raises(SettingsError, match="method must be one of"):
        pipe.invert(result.latents, "a", method="guess")


def test_what_would_not_be_looked_at_is_refused_before_work(pipe, result, monkeypatch) -> None:
    made = pipe.generate("a", solver="reversible_heun", **FIELD)

    def fail(*_arguments) -> None:
        pytest.fail("the transformer ran")

    monkeypatch.setattr("sd35.velocity.GuidedVelocity.__call__", fail)
    with pytest.raises(SettingsError, match="these are latents already"):
        pipe.invert(result.state(), refine_steps=5)
    with pytest.raises(SettingsError, match="refine_steps must be a whole number of at least 0, got -3"):
        pipe.invert(result.images[0], "a red circle", refine_steps=-3, **FIELD)
    with pytest.raises(SettingsError, match=r"noise must be floats \(1, 16, 4, 4\), got .* \(1, 16, 8, 8\)"):
        pipe.invert(result.latents, "a red circle", noise=torch.zeros(1, 16, 8, 8), **FIELD)
    with pytest.raises(SettingsError, match="accuracy has no effect here, only with the exact method"):
        pipe.invert(made.state(), accuracy=1e-3)
    with pytest.raises(SettingsError, match="undone, which takes no options: leave out iterations"):
        pipe.invert(made.state(), method_options={"iterations": 3})
    with pytest.raises(SettingsError, match=r"method must be one of exact, naive, .* got 'guess'"):
        pipe.invert(made.state(), method="guess")
    with pytest.raises(flow.FlowError, match=r'another generation: .*solver: "reversible_heun" in the comp'):
        pipe.invert(made.state(), solver="bdia")
    with pytest.raises(flow.FlowError, match=r"another generation: .*sigmas: "):
        pipe.invert(made.state(), steps=9)
    with pytest.raises(SettingsError, match="'solver' is no option of a method"):
        pipe.invert(result.state(), method_options={"solver": "heun"})
    with pytest.raises(SettingsError, match="expected pictures"):
        pipe.invert(result.image[0], "a red circle", refine_steps=2, **FIELD)


def test_pictures_come_in_every_form(pipe, result, tmp_path) -> None:
    (path,) = result.save(tmp_path / "a.png", metadata=False)
    given = {"measure": False, "method": "naive", **FIELD}
    first = pipe.invert(result.images[0], "a red circle", **given).noise
    for data in (str(path), path, [result.images[0]], np.asarray(result.images[0])):
        assert torch.equal(pipe.invert(data, "a red circle", **given).noise, first)
    latents = pipe.invert(result.latents.numpy(), "a red circle", noise=result.noise.numpy(), **given)
    assert "noise" in latents.losses
    both = pipe.invert([result.images[0]] * 2, "a red circle", **given)
    assert torch.equal(both.noise[1:], first)
    drawn = pipe.generate("a", noise=result.noise.numpy(), steps=2)
    assert torch.equal(drawn.noise, result.noise)
    with pytest.raises(SettingsError, match=r"If white is 1 and black 0, pass 2 \* image - 1"):
        pipe.invert(torch.rand(1, 3, 32, 32), "a")


def test_refining_shows_how_far_it_is(pipe, result, capsys) -> None:
    pipe.invert(result.images[0], "a", method="naive", refine_steps=2, progress=True, **FIELD)
    err = capsys.readouterr().err
    assert all(name in err for name in ("refining", "inverting", "drawing again"))


def test_results_print_in_a_line(pipe, result) -> None:
    inverted = pipe.invert(result.latents, "a red circle", method="naive", **FIELD)
    edited = pipe.edit(result.latents, "b", method="rf_inversion", **FIELD)
    for shown in (repr(inverted), repr(result), repr(edited)):
        assert len(shown) < 100
    assert repr(inverted) == "Inverted(noise 1 x 16 x 4 x 4, naive, 4 evaluations)"


def test_a_reversible_generation_can_be_inverted_naively_too(pipe) -> None:
    state = pipe.generate("a", solver="reversible_heun", **FIELD).state()
    undone, naive = pipe.invert(state), pipe.invert(state, method="naive")
    assert (undone.report.method, naive.report.method) == ("undo", "naive")
    assert naive.losses["noise"].total_psnr < undone.losses["noise"].total_psnr - 20
    upward = pipe.invert(state, method="naive", solver="heun")
    assert (upward.report.method, upward.report.solver) == ("naive", "heun")


def test_a_state_keeps_noise_that_was_given(pipe, result, tmp_path) -> None:
    made = pipe.generate("a", noise=result.noise, **FIELD)
    state = State.load(*made.state().save(tmp_path / "state.safetensors"))
    assert torch.equal(state.noise, result.noise)
    assert "so the noise found is at" in pipe.invert(state, "b").notes[-1]
    assert result.state().noise is None  # the seed tells it


def test_another_model_and_other_encoders_are_told(pipe, result) -> None:
    made = result.settings.made_with | {"t5": "no"}
    other = replace(result.settings, model="elsewhere", made_with=made)
    notes = pipe.invert(replace(result.state(), settings=other)).notes
    assert notes[0].startswith("model: elsewhere when the picture was drawn, ")
    assert notes[1].startswith("t5: no when the picture was drawn, yes here")
    assert notes[2].startswith("so the noise found is at ")


def test_half_precision_is_warned_of(result, model_folder) -> None:
    import sd35

    half = sd35.load(model_folder, dtype=torch.bfloat16)
    weights = [parameter.data_ptr() for parameter in half.mmdit.parameters()]
    given = {"method": "naive", "measure": False, **FIELD}
    wide = half.invert(result.latents, "a", **given)
    assert "computed in float32, from weights that were loaded in bfloat16" in wide.notes[-1]
    assert [parameter.data_ptr() for parameter in half.mmdit.parameters()] == weights  # the very tensors
    narrow = half.invert(result.latents, "a", precision="model", **given)
    assert "computes in bfloat16" in narrow.notes[-1]
    widened = copy.deepcopy(half).to(dtype=torch.float32)
    same = widened.invert(result.latents, "a", **given)
    assert flow.closeness(wide.noise, same.noise).total_psnr > 60  # encoders stay as they were loaded
    assert not torch.equal(narrow.noise, wide.noise)


def test_the_noise_found_can_be_drawn_from_again(pipe, result, tmp_path) -> None:
    inverted = pipe.invert(result.latents, "a red circle", seed=4, **FIELD)
    (path,) = inverted.state().save(tmp_path / "noise.safetensors")
    again = pipe.generate("a red circle", noise=type(inverted.state()).load(path).noise, **FIELD)
    assert flow.closeness(again.image, result.image, 2.0).total_psnr > 60


def test_a_saved_state_needs_nothing_else(pipe, tmp_path) -> None:
    made = pipe.generate(["a", "b"], seed=4, solver="bitexact", negative="c", **FIELD)
    state = State.load(*made.state().save(tmp_path / "state.safetensors"))
    inverted = pipe.invert(state)
    assert torch.equal(inverted.noise, made.noise)
    assert inverted.notes == ()


def test_settings_that_differ_from_the_saved_ones_are_told(pipe, result) -> None:
    own, other = pipe.invert(result.state()), pipe.invert(result.state(), "a blue star", guidance_scale=3.0)
    assert own.notes == ()
    *differing, cost = other.notes
    assert [note.split(":")[0] for note in differing] == ["prompts", "guidance scale"]
    assert "That is another flow" in differing[0]
    assert f"at {other.losses['noise'].total_psnr:.1f} dB" in cost
    assert other.losses["noise"].total_psnr < own.losses["noise"].total_psnr - 10
    with pytest.raises(flow.FlowError, match="belongs to another generation"):
        pipe.invert(pipe.generate("a", solver="reversible_heun", **FIELD).state(), "b")


def test_something_must_tell_the_prompt_and_the_latents(pipe, result) -> None:
    with pytest.raises(SettingsError, match="which prompt was it drawn from"):
        pipe.invert(result.latents)
    with pytest.raises(SettingsError, match="noise and no latents"):
        pipe.invert(State(result.settings, noise=result.noise))


def test_undoing_in_half_precision_needs_no_warning(model_folder) -> None:
    half = load(model_folder, dtype=torch.bfloat16)
    made = half.generate("a", solver="bitexact", **FIELD)
    inverted = half.invert(made.state())
    assert torch.equal(inverted.noise, made.noise)
    assert inverted.notes == ()


def test_hooks_can_tell_the_steps_apart(pipe, result) -> None:
    with capture(pipe.mmdit, "output", branch="cond", reduce=torch.linalg.norm) as taps:
        pipe.invert(result.latents, "a red circle", **FIELD)
    steps = [record.step for record in taps.records]
    assert [step for step, _ in groupby(steps)] == [3, 2, 1, 0, 1, 2, 3]  # down to noise, and drawn again


@pytest.mark.parametrize("options", [{"method": "guess"}, {"accuracy": 1e-300}])
def test_a_wrong_method_is_refused_before_work(pipe, result, monkeypatch, options) -> None:
    def fail(*_arguments, **_options) -> None:
        pytest.fail("work began")

    monkeypatch.setattr("sd35.model.Model.encode", fail)
    monkeypatch.setattr("sd35.model.Model.encode_prompt", fail)
    with pytest.raises(ValueError, match="must be"):
        pipe.invert(result.images[0], "a", refine_steps=5, **options)


def test_the_naive_way_runs_the_solver_as_the_generation_did(pipe, result) -> None:
    given = {"method": "naive", "solver": "leapfrog", "measure": False, **FIELD}
    one, other = (
        pipe.invert(result.latents, "a red circle", solver_options={"damping": damping}, **given).noise
        for damping in (0.9, 0.6)
    )
    assert not torch.equal(one, other)


def test_noise_that_is_given_is_what_is_compared_with(pipe, result) -> None:
    given = {"seed": 5, "measure": False, **FIELD}  # of other noise than the picture's
    own = pipe.invert(result.latents, "a red circle", noise=result.noise, **given)
    drawn = pipe.invert(result.latents, "a red circle", **given)
    assert own.losses["noise"].total_psnr > drawn.losses["noise"].total_psnr + 20
