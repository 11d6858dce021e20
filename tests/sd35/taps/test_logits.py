"""The logits of the attentions, read and changed."""

import pytest
import torch

from sd35.taps import TapError, capture, patch

TAP = "joint_blocks.1.attention.logits"
SECOND = "joint_blocks.0.x_block.attn2.attention.logits"


def test_capturing_logits_changes_no_bit_and_gives_what_queries_and_keys_give(model, inputs):
    before = model(*inputs())
    with capture(model, TAP, "joint_blocks.1.*_block.attn.ln_[qk]") as taps:
        assert torch.equal(model(*inputs()), before)
    q, k = (
        torch.cat(
            [taps[f"joint_blocks.1.{stream}_block.attn.ln_{one}"] for stream in ("context", "x")], dim=2
        )
        for one in "qk"
    )
    torch.testing.assert_close(taps[TAP], q @ k.transpose(2, 3) / 8)
    assert taps.of(TAP)[0].dims == ("batch", "head", "query", "key")


@pytest.mark.parametrize("tap", [TAP, SECOND])
def test_patched_logits_are_what_the_model_goes_on_with(model, inputs, tap):
    before = model(*inputs())
    with patch(model, {tap: lambda logits: logits}):
        assert torch.equal(model(*inputs()), before)
    with patch(model, {tap: lambda logits: logits + 0}):
        torch.testing.assert_close(model(*inputs()), before, rtol=1e-4, atol=1e-5)
    with patch(model, {tap: torch.zeros_like}), capture(model, tap.removesuffix(".logits")) as taps:
        model(*inputs())
    out = taps[tap.removesuffix(".logits")]  # even attention: every query gets the mean of the values
    torch.testing.assert_close(out, out[:, :1].expand_as(out))


def test_keys_are_hidden_by_minus_infinity(model, inputs):
    text = 5

    def hide_text(logits):
        hidden = logits.clone()
        hidden[:, :, text:, :text] = -torch.inf
        return hidden

    latents, sigma, context, pooled = inputs()
    every = {f"joint_blocks.{block}.attention.logits": hide_text for block in range(3)}
    with patch(model, every):
        first, second = model(latents, sigma, context, pooled), model(latents, sigma, -context, pooled)
    torch.testing.assert_close(first, second)  # no image token reads the text
    assert not torch.allclose(model(latents, sigma, context, pooled), model(latents, sigma, -context, pooled))


def test_nested_blocks_see_the_logits_that_outer_ones_put_there(model, inputs):
    with (
        patch(model, {TAP: lambda x: x + 1}),
        patch(model, {TAP: lambda x: 2 * x}),
        capture(model, TAP) as after,
    ):
        model(*inputs())
    with capture(model, TAP) as before:
        model(*inputs())
    assert torch.equal(after[TAP], 2 * (before[TAP] + 1))


def test_gradients_reach_a_change_of_the_logits(model, inputs):
    shift = torch.zeros(1, 2, 21, 21, requires_grad=True)
    with patch(model, {TAP: lambda logits: logits + shift}):
        model(*inputs()).sum().backward()
    assert shift.grad is not None
    assert shift.grad.abs().max() > 0


def test_a_branch_of_the_guidance_alone(model, generate):
    plain = generate(model)
    with patch(model, {TAP: torch.zeros_like}, branch="cond"), capture(model, TAP, branch="uncond") as taps:
        changed = generate(model)
    assert not torch.equal(plain, changed)
    assert all(record.tensor.abs().max() > 0 for record in taps.of(TAP))


def test_logits_are_chosen_only_where_they_are_asked_for(model, inputs):
    with capture(model, "**", lambda name: name == SECOND) as taps:
        model(*inputs())
    assert TAP not in taps
    assert SECOND in taps
    with capture(model, "joint_blocks.*.attention.logits") as taps:
        model(*inputs())
    assert len(taps) == 3


def test_what_is_in_an_attentions_place_has_no_logits(model, inputs):
    class Even(torch.nn.Module):
        def forward(self, q, k, v):
            return v.mean(dim=2, keepdim=True).expand_as(v).transpose(1, 2).flatten(2)

    kept, model.joint_blocks[1].attention = model.joint_blocks[1].attention, Even()
    try:
        with pytest.raises(TapError, match="matches no tap"):
            capture(model, TAP)
        with capture(model, "joint_blocks.1.attention") as taps:  # what it gives is seen as ever
            model(*inputs())
        assert taps["joint_blocks.1.attention"].shape == (2, 21, 128)
    finally:
        model.joint_blocks[1].attention = kept
