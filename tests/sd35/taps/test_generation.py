"""Steps and branches of a guided generation, as captures and patches see them."""

import pytest
import torch

from sd35.taps import TapError, capture, patch

TAP = "joint_blocks.1.x"


def test_records_say_when(model, generate):
    with capture(model, TAP) as taps:
        generate(model)
    assert [(r.step, r.branch, r.samples) for r in taps.of(TAP)] == [
        (step, branch, (0,)) for step in range(3) for branch in ("cond", "uncond")
    ]
    assert taps.records[0].sigma == 1.0
    assert taps.stack(TAP).shape == (6, 1, 16, 128)
    assert taps.select(step=2, branch="uncond")[TAP].shape == (1, 16, 128)
    with pytest.raises(TapError, match=r"computed 6 times \(steps 0 to 2, cond and uncond\)"):
        taps[TAP]
    with pytest.raises(TapError, match="no step 7 was captured, only 0, 1, 2"):
        taps.select(step=7)


def test_only_the_steps_and_the_branch_asked_for(model, generate):
    with capture(model, TAP, steps=[0, 2], branch="uncond") as taps:
        generate(model)
    assert [(r.step, r.branch) for r in taps.records] == [(0, "uncond"), (2, "uncond")]


def test_branches_in_one_call_or_in_two_are_the_same_records(model, generate):
    with capture(model, TAP) as together:
        generate(model)
    with capture(model, TAP) as apart:
        generate(model, negative_length=6)
    key = [(r.step, r.branch, r.tensor.shape) for r in together.records]
    assert key == [(r.step, r.branch, r.tensor.shape) for r in apart.records]
    torch.testing.assert_close(together.records[0].tensor, apart.records[0].tensor)


def test_samples_of_a_batch(model, generate):
    with capture(model, TAP, steps=[0]) as alone:
        generate(model, samples=3)
    with capture(model, TAP, steps=[0]) as batched:
        generate(model, samples=3, batch_size=2)
    assert [r.samples for r in alone.records] == [(0,), (0,), (1,), (1,), (2,), (2,)]
    assert [r.samples for r in batched.records] == [(0, 1), (0, 1), (2,), (2,)]
    cond = [torch.cat([r.tensor for r in taps.records if r.branch == "cond"]) for taps in (alone, batched)]
    torch.testing.assert_close(*cond)


def test_unknown_steps_and_branches(model, generate, inputs):
    with (
        pytest.raises(TapError, match=r"steps \[3, 40\] never came: the model ran for steps 0 to 2"),
        capture(model, TAP, steps=[1, 3, 40]),
    ):
        generate(model)
    with pytest.raises(TapError, match="did you mean uncond"):
        capture(model, TAP, branch="unconditional")
    for steps in ([], [-1], [0.5], [True]):
        with pytest.raises(TapError, match="whole numbers"):
            capture(model, TAP, steps=steps)
    with (
        pytest.raises(TapError, match=r"run the transformer through .*with sigmas="),
        capture(model, TAP, steps=[0]),
    ):
        model(*inputs())
    with (
        pytest.raises(TapError, match="was run for the uncond branch inside"),
        capture(model, TAP, branch="uncond"),
    ):
        generate(model, guidance_scale=1.0)


def test_a_patch_of_one_branch_leaves_the_other(model, generate):
    with (
        patch(model, {"joint_blocks.0.x": lambda x: x + 1}, branch="cond"),
        capture(model, TAP, steps=[0]) as after,
    ):
        generate(model)
    with capture(model, TAP, steps=[0]) as before:
        generate(model)
    assert torch.equal(before.select(branch="uncond")[TAP], after.select(branch="uncond")[TAP])
    assert not torch.equal(before.select(branch="cond")[TAP], after.select(branch="cond")[TAP])


def test_a_patch_of_one_step_leaves_those_before(model, generate):
    with patch(model, {TAP: torch.zeros_like}, steps=[1]), capture(model, TAP) as after:
        generate(model)
    with capture(model, TAP) as before:
        generate(model)
    equal = [
        torch.equal(before.select(step=step, branch="cond")[TAP], after.select(step=step, branch="cond")[TAP])
        for step in range(3)
    ]
    assert equal == [True, False, False]


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_patching_prompt_a_into_prompt_b(model, generate, solver):
    """The text reaches the picture through the context and through c: with both patched, B draws A."""
    pictures = [generate(model, prompt, solver=solver) for prompt in (1, 2)]
    assert not torch.allclose(*pictures)
    with capture(model, "context_embedder", "conditioning") as taps:
        generate(model, 1, solver=solver)
    with patch(model, {"context_embedder": taps, "conditioning": taps}):
        patched = generate(model, 2, solver=solver)
        again = generate(model, 2, solver=solver)
    assert torch.equal(patched, pictures[0])
    assert torch.equal(again, pictures[0])
    with patch(model, {"context_embedder": taps}):
        partly = generate(model, 2, solver=solver)
    assert not torch.allclose(partly, pictures[0])
    assert not torch.allclose(partly, pictures[1])


def test_patching_what_was_not_captured(model, generate, inputs):
    with capture(model, TAP, steps=[0], branch="cond") as taps:
        generate(model)
    with (
        pytest.raises(TapError, match=r"not captured for .* 0 uncond \(0,\), only for 0 cond \(0,\): narrow"),
        patch(model, {TAP: taps}),
    ):
        generate(model)
    with patch(model, {TAP: taps}, steps=[0], branch="cond"):
        generate(model)
    with (
        pytest.raises(TapError, match="inside a generation, and is put back outside one"),
        patch(model, {TAP: taps}),
    ):
        model(*inputs())
