"""What is noted down of a generation, and that noting it down changes nothing."""

import pytest
import torch

from sd35 import BudgetError, Settings, SettingsError
from sd35.attention.record import WORKSPACE
from sd35.report import Recorder
from sd35.taps import TapError
from textenc.prompt import as_prompts


def test_pictures_are_those_of_the_unwatched_generation(recorded, unwatched, pipe) -> None:
    assert torch.equal(recorded.result.latents, unwatched.latents)
    assert torch.equal(recorded.result.image, unwatched.image)
    assert not any(module._forward_hooks for module in pipe.mmdit.modules())


def test_every_step_is_there(recorded) -> None:
    recording, result = recorded, recorded.result
    assert [step.number for step in recording.steps] == [0, 1, 2]
    assert [step.sigma for step in recording.steps] == pytest.approx(recording.sigmas[:-1].tolist())
    for step in recording.steps:
        assert step.denoised.shape == result.latents.shape
        assert [preview.size for preview in step.previews] == [(32, 32), (32, 32)]
    # The last step ends at sigma 0, where the data it heads for is what it gives.
    assert torch.allclose(recording.steps[-1].denoised.float(), result.latents, atol=4e-3)


def test_velocities_are_those_of_the_model(recorded, pipe) -> None:
    """The first step's, computed again branch by branch."""
    velocities = recorded.steps[0].velocities
    sigma = recorded.sigmas[:1]
    cond, uncond = (
        pipe.mmdit(recorded.result.noise[1:], sigma, one.context, one.pooled)
        for one in recorded.encodings[1:]
    )
    expected = {
        "cond": cond,
        "uncond": uncond,
        "guidance": cond - uncond,
        "guided": uncond + 2 * (cond - uncond),
    }
    for name, tensor in expected.items():
        assert velocities[name][1] == pytest.approx(float(tensor.square().mean().sqrt()), rel=1e-4), name


def test_statistics_of_every_block(recorded) -> None:
    blocks = recorded.blocks
    streams = {(block, stream) for block, stream, _, _ in blocks}
    assert streams == {(0, "x"), (0, "context"), (1, "x")}  # the last block of two passes on no text
    assert len(blocks) == len(streams) * 3 * 2
    assert all(0 < one.rms < one.largest for one in blocks.values())


def test_attention_is_from_image_to_text(recorded) -> None:
    maps = recorded.attention
    assert maps.heatmap("circle", sample=1).shape == (2, 2)


def test_attention_may_be_left_out(pipe) -> None:
    settings = Settings(prompts=as_prompts("a circle"), steps=1)
    recorder = Recorder(pipe, pipe.steps(settings), attention=False)
    assert len(recorder) == len(list(recorder)) == 1
    assert recorder.recording.attention is None
    assert recorder.recording.blocks


def test_without_guidance_there_is_one_branch(pipe) -> None:
    recorded = pipe.record("a circle", steps=1, guidance_scale=1)
    assert set(recorded.steps[0].velocities) == {"cond", "guided"}


def test_solvers_with_several_evaluations_have_one_record_a_step(pipe) -> None:
    recorded = pipe.record("a circle", steps=2, solver="heun")
    assert [step.number for step in recorded.steps] == [0, 1]
    assert {step for _, _, step, _ in recorded.blocks} == {0, 1}


def test_before_the_last_step_there_is_no_result(pipe) -> None:
    recorder = Recorder(pipe, pipe.steps(Settings(prompts=as_prompts("a circle"), steps=2)))
    next(iter(recorder))
    with pytest.raises(SettingsError, match="no result before the last step"):
        _ = recorder.recording.result


def test_compiled_models_are_refused(pipe, monkeypatch) -> None:
    monkeypatch.setattr(pipe.mmdit, "_compiled_call_impl", lambda: None, raising=False)
    with pytest.raises(TapError, match="compiled"):
        pipe.record("a circle", steps=1)


def test_more_pictures_than_a_report_may_keep_are_refused_before_drawing(pipe, recorded, monkeypatch) -> None:
    def fail(*_arguments) -> None:
        pytest.fail("the transformer ran")

    monkeypatch.setattr("sd35.velocity.GuidedVelocity.__call__", fail)
    generation = pipe.steps(recorded.result.settings)
    needed = recorded.attention.nbytes + WORKSPACE
    monkeypatch.setattr("sd35.report.recording.BUDGET", needed)
    Recorder(pipe, generation)
    monkeypatch.setattr("sd35.report.recording.BUDGET", needed - 1)
    with pytest.raises(BudgetError, match=r"a report of 2 pictures keeps .* draw fewer pictures at a time"):
        Recorder(pipe, generation)
    Recorder(pipe, generation, attention=False)
