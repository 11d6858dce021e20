"""Replacing tensors in flight."""

import pytest
import torch

from sd35.taps import TapError, capture, patch


def test_identity_changes_no_bit_and_nothing_stays(model, inputs):
    before = model(*inputs())
    with patch(model, {"**": lambda x: x}):
        assert torch.equal(model(*inputs()), before)
    with patch(model, {"joint_blocks.1.x": torch.zeros_like}):
        assert not torch.equal(model(*inputs()), before)
    assert torch.equal(model(*inputs()), before)


def test_ablating_an_mlp_removes_exactly_its_branch(model, inputs):
    with (
        patch(model, {"joint_blocks.1.x_block.mlp": torch.zeros_like}),
        capture(model, "joint_blocks.1.**") as taps,
    ):
        model(*inputs())
    assert torch.equal(taps["joint_blocks.1.x"], taps["joint_blocks.1.x_block.attended"])
    assert not torch.equal(taps["joint_blocks.1.context"], taps["joint_blocks.1.context_block.attended"])


def test_one_part_of_a_pair(model, inputs):
    with capture(model, "joint_blocks.0.*") as before:
        model(*inputs())
    with (
        patch(model, {"joint_blocks.0.context": lambda context: 2 * context}),
        capture(model, "joint_blocks.0.*") as after,
    ):
        model(*inputs())
    assert torch.equal(after["joint_blocks.0.x"], before["joint_blocks.0.x"])
    assert torch.equal(after["joint_blocks.0.context"], 2 * before["joint_blocks.0.context"])


def test_a_tensor_and_a_modulation(model, inputs):
    bias = torch.full((2, 1, 128), 0.5)
    with (
        patch(model, {"joint_blocks.1.x_block.adaLN_modulation.gate": bias}),
        capture(model, "joint_blocks.1.x_block.**") as taps,
        capture(model, "joint_blocks.0.x") as x,
    ):
        model(*inputs())
    expected = x["joint_blocks.0.x"] + bias * taps["joint_blocks.1.x_block.attn.proj"]
    assert torch.equal(taps["joint_blocks.1.x_block.attended"], expected)


def test_the_joint_attention_reads_a_patched_value(model, inputs):
    with (
        patch(model, {"joint_blocks.1.*_block.attn.v": torch.ones_like}),
        capture(model, "joint_blocks.1.attention") as taps,
    ):
        model(*inputs())
    torch.testing.assert_close(taps["joint_blocks.1.attention"], torch.ones(2, 21, 128))


def test_patching_between_runs(model, inputs):
    _, sigma, _, pooled = inputs(1)
    with capture(model, "joint_blocks.1.*") as taps:
        first = model(*inputs(1))
    latents, _, context, _ = inputs(2)
    with patch(model, {"joint_blocks.1.x": taps, "joint_blocks.1.context": taps}):
        patched = model(latents, sigma, context, pooled)
    assert torch.equal(patched, first)  # after block 1 only x, context and c matter: all are the first run's
    with patch(model, {"joint_blocks.1.x": taps}):
        assert not torch.equal(model(latents, sigma, context, pooled), first)


def test_an_error_of_the_callers_comes_through(model):
    with pytest.raises(ZeroDivisionError), patch(model, {"patches": torch.zeros_like}):
        raise ZeroDivisionError


def test_calls_are_matched_in_order(model, inputs):
    with capture(model, "joint_blocks.1.x") as taps:
        model(*inputs(1))
        model(*inputs(2))
    with patch(model, {"joint_blocks.1.x": taps}), capture(model, "joint_blocks.1.x") as after:
        model(*inputs(3))
        model(*inputs(3))
        with pytest.raises(TapError, match="captured in 2 calls, and this is call 3"):
            model(*inputs(3))
    assert torch.equal(after.stack("joint_blocks.1.x"), taps.stack("joint_blocks.1.x"))


def test_patches_nest_outside_in_and_patterns_apply_in_order(model, inputs):
    with (
        patch(model, {"patches": lambda x: x + 1}),
        patch(model, {"patches": lambda x: 2 * x}),
        capture(model, "patches") as nested,
    ):
        model(*inputs())
    with (
        patch(model, {"patches": lambda x: x + 1, "patche*": lambda x: 2 * x}),
        capture(model, "patches") as in_order,
    ):
        model(*inputs())
    with capture(model, "patches") as before:
        model(*inputs())
    assert torch.equal(nested["patches"], 2 * (before["patches"] + 1))
    assert torch.equal(in_order["patches"], nested["patches"])


def test_gradients_flow_through_a_patch(model, inputs):
    direction = torch.zeros(128, requires_grad=True)
    with patch(model, {"joint_blocks.0.x": lambda x: x + direction}):
        model(*inputs()).square().sum().backward()
    assert direction.grad is not None
    assert direction.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda x: x[:, :-1], r"\(2, 15, 128\) float32 on cpu"),
        (lambda x: x.half(), r"\(2, 16, 128\) float16 on cpu"),
        (lambda x: x.to("meta"), r"\(2, 16, 128\) float32 on meta"),
    ],
)
def test_refuses_another_shape_dtype_or_device(model, inputs, change, got):
    expected = r"the change of patches must return \(2, 16, 128\) float32 on cpu, as it was given, got " + got
    with pytest.raises(TapError, match=expected), patch(model, {"patches": change}):
        model(*inputs())


def test_refuses_what_cannot_work(model, inputs):
    nothing = patch(model, {"patches": lambda x: None})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TapError, match="must return a tensor, got NoneType"), nothing:
        model(*inputs())
    with pytest.raises(TapError, match="did you mean patches"):
        patch(model, {"patchs": torch.zeros_like})
    with pytest.raises(TapError, match="no change was asked for"):
        patch(model, {})
    with (
        pytest.raises(TapError, match="nothing that 'patches' matches was run"),
        patch(model, {"patches": torch.zeros_like}),
    ):
        pass
    with capture(model, "patches") as taps:
        model(*inputs())
    with pytest.raises(TapError, match="nothing was captured of 'conditioning'"):
        patch(model, {"conditioning": taps})
