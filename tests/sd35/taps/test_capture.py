"""Watching a model: what is kept is what was computed, and the model does not notice."""

import pytest
import torch

from sd35.taps import BudgetError, TapError, capture, patch
from textenc import CLIP, T5, CLIPConfig, T5Config
from vae import VAE, VAEConfig


def test_watching_changes_no_bit_and_leaves_no_hook(model, inputs):
    before = model(*inputs())
    with capture(model, "**") as taps:
        during = model(*inputs())
    assert torch.equal(before, during)
    assert torch.equal(taps["output"], during)
    assert torch.equal(model(*inputs()), before)
    assert len(taps) > 100


def test_keeps_what_the_blocks_computed(model, inputs):
    latents, sigma, context, pooled = inputs()
    with capture(model, "patches", "conditioning", "context_embedder", "joint_blocks.*.[xc]*") as taps:
        model(latents, sigma, context, pooled)
    x, text = taps["patches"], taps["context_embedder"]
    for i, block in enumerate(model.joint_blocks):
        x, text = block(x, text, taps["conditioning"])
        assert torch.equal(taps[f"joint_blocks.{i}.x"], x)
        assert text is None or torch.equal(taps[f"joint_blocks.{i}.context"], text)
    assert "joint_blocks.2.context" not in taps
    assert torch.equal(taps["conditioning"], model.t_embedder(sigma) + model.y_embedder(pooled))


def test_halfway_tokens_and_values(model, inputs):
    with capture(model, "joint_blocks.1.**") as taps:
        model(*inputs())
    at = "joint_blocks.1.x_block"
    half, gate, mlp = (taps[f"{at}.{name}"] for name in ("attended", "adaLN_modulation.gate_mlp", "mlp"))
    assert torch.equal(taps["joint_blocks.1.x"], torch.addcmul(half, gate, mlp))
    query, key, value = taps[f"{at}.attn.qkv"].chunk(3, dim=-1)
    assert torch.equal(taps[f"{at}.attn.v"].transpose(1, 2).flatten(2), value)
    assert not torch.equal(query, key)


def test_reduces_converts_and_moves(model, inputs):
    def norm(x):
        return x.norm(dim=-1)

    with capture(model, "joint_blocks.*.x", reduce=norm, dtype=torch.float16, device="meta") as small:
        model(*inputs())
    assert [(t.shape, t.dtype, t.device.type) for t in small.values()] == [
        ((2, 16), torch.float16, "meta")
    ] * 3
    with (
        capture(model, "joint_blocks.0.x") as whole,
        capture(model, "joint_blocks.0.x", reduce=norm) as norms,
    ):
        model(*inputs())
    assert torch.equal(norms["joint_blocks.0.x"], norm(whole["joint_blocks.0.x"]))
    assert norms.records[0].dims is None
    assert whole.records[0].dims == ("batch", "image_token", "channel")
    with (
        pytest.raises(TapError, match="reduce must return a tensor, got float"),
        capture(model, "output", reduce=lambda x: x.mean().item()),
    ):
        model(*inputs())


def test_a_view_does_not_keep_the_whole_alive(model, inputs):
    with capture(model, "**.attn.v", "**.adaLN_modulation.shift") as taps:
        model(*inputs())
    assert all(t.untyped_storage().nbytes() == t.numel() * 4 for t in taps.values())
    assert taps.nbytes == sum(t.numel() * 4 for t in taps.values())


def test_gradients_reach_through_and_no_grad_keeps_none(model, inputs):
    latents, sigma, context, pooled = inputs()
    latents.requires_grad_()
    with capture(model, "joint_blocks.1.x") as taps:
        model(latents, sigma, context, pooled)
    (grad,) = torch.autograd.grad(taps["joint_blocks.1.x"].sum(), latents)
    assert grad.abs().sum() > 0
    with torch.no_grad(), capture(model, "joint_blocks.1.x") as taps:
        model(latents, sigma, context, pooled)
    assert not taps["joint_blocks.1.x"].requires_grad


def test_the_same_tap_in_nested_captures(model, inputs):
    with capture(model, "joint_blocks.0.x") as outer:
        model(*inputs(1))
        with capture(model, "joint_blocks.*.x") as inner:
            model(*inputs(2))
    assert len(outer.of("joint_blocks.0.x")) == 2
    assert torch.equal(outer.records[1].tensor, inner["joint_blocks.0.x"])
    with pytest.raises(TapError, match=r"computed 2 times \(outside a generation\)"):
        outer["joint_blocks.0.x"]
    assert outer.stack("joint_blocks.0.x").shape == (2, 2, 16, 128)


def test_two_patterns_keep_a_tap_once(model, inputs):
    with capture(model, "joint_blocks.0.x", "joint_blocks.*.x") as taps:
        model(*inputs())
    assert len(taps.records) == 3


def test_sees_what_an_outer_patch_put_there(model, inputs):
    with (
        capture(model, "patches") as before,
        patch(model, {"patches": torch.zeros_like}),
        capture(model, "patches") as after,
    ):
        model(*inputs())
    assert before["patches"].abs().sum() > 0
    assert after["patches"].abs().sum() == 0


def test_an_exception_inside_leaves_no_hook(model, inputs):
    def fail(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), capture(model, "**"), patch(model, {"final_layer": fail}):
        model(*inputs())
    assert not any(module._forward_hooks for module in model.modules())


def test_refuses_a_budget_that_does_not_suffice(model, inputs):
    one = 2 * 16 * 128 * 4
    with capture(model, "joint_blocks.*.x", budget=3 * one) as taps:
        model(*inputs())
    assert taps.nbytes == 3 * one
    with (
        pytest.raises(
            BudgetError, match=r"joint_blocks.2.x beside 2 .* 48.0 KiB.* 32.0 KiB: all 3 taps .* 48.0 KiB"
        ),
        capture(model, "joint_blocks.*.x", budget=2 * one),
    ):
        model(*inputs())
    with capture(model, "joint_blocks.*.x", budget=3 * one):
        model(*inputs())
        with pytest.raises(BudgetError, match="beside 3 other tensors"):
            model(*inputs())
    with pytest.raises(TapError, match="positive"):
        capture(model, "**", budget=0)


def test_what_matched_but_never_ran_is_an_error(model):
    with (
        pytest.raises(TapError, match=r"nothing that 'patches' matches was run inside"),
        capture(model, "patches"),
    ):
        pass


def test_refuses_what_is_no_module_and_what_is_compiled(model):
    with pytest.raises(TapError, match=r"pipe\.mmdit, got str"):
        capture("tiny", "**")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TapError, match=r"the module is compiled: .*_orig_mod"):
        capture(torch.compile(model, backend="eager"), "**")  # pyright: ignore[reportArgumentType]
    block = model.joint_blocks[1]
    block.compile(backend="eager")
    with pytest.raises(TapError, match=r"joint_blocks\.1 is compiled"):
        capture(model, "**")
    block._compiled_call_impl = None


def test_a_part_of_a_model(model, inputs):
    with capture(model.joint_blocks[1], "x", "x_block.attn.ln_q") as taps:
        model(*inputs())
    assert [record.dims for record in taps.records] == [
        ("batch", "head", "image_token", "head_channel"),
        ("batch", "image_token", "channel"),
    ]


def test_text_encoders_and_autoencoder():
    ids = torch.tensor([[1, 5, 9]])
    clip, t5 = CLIP(CLIPConfig(10, 4, 64, 2, 1, 128, 8, "gelu")), T5(T5Config(10, 64, 2, 1, 64, 128, 32))
    with capture(clip, "pooled", "text_model.last", "**.layers.*") as taps:
        out = clip(ids)
    assert torch.equal(taps["pooled"], out.pooled)
    assert torch.equal(taps["text_model.last"], out.last)
    assert torch.equal(taps["text_model.encoder.layers.0"], out.penultimate)
    with capture(t5, "output", "encoder.block.*") as taps:
        assert torch.equal(t5(ids), taps["output"])
    vae = VAE(VAEConfig(channels=(32, 32, 32, 32), num_res_blocks=1, latent_channels=16))
    with capture(vae, "decoder") as taps:
        image = vae.decode(torch.zeros(1, 16, 2, 2))
    assert torch.equal(taps["decoder"], image)
