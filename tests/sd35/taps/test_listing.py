"""The list of taps is complete, documented, and right about shapes."""

import pytest
import torch

from sd35.taps import TapError, capture, list_taps
from sd35.taps.outputs import ENCODED, parts_of
from textenc import CLIP, T5, CLIPConfig, CLIPOutput, T5Config
from vae import VAE, VAEConfig


def test_lists_what_a_run_computes(model, inputs):
    listed = {tap.name: tap.shape for tap in list_taps(model, width=64, height=64, tokens=5, batch=2)}
    with capture(model, "**", "**.logits") as taps:
        model(*inputs())
    assert listed == {name: tuple(tensor.shape) for name, tensor in taps.items()}


@pytest.mark.parametrize(
    "build",
    [
        lambda model: model,
        lambda model: CLIP(CLIPConfig(10, 77, 64, 2, 1, 128, 8, "gelu")),
        lambda model: T5(T5Config(10, 64, 2, 1, 64, 128, 32)),
        lambda model: VAE(VAEConfig(channels=(32, 32, 32, 64), num_res_blocks=1, latent_channels=16)),
    ],
)
def test_every_tap_has_a_meaning_and_a_name_for_each_dimension(model, build):
    taps = list_taps(build(model), width=64, height=32, tokens=7, batch=3)
    assert len(taps) > 20
    for tap in taps:
        assert tap.text, tap.name
        assert tap.dims is not None, tap.name
        assert len(tap.dims) == len(tap.shape), tap
        sizes = dict(zip(tap.dims, tap.shape, strict=True))
        known = {
            "batch": 3,
            "text_token": 7,
            "image_token": 8,
            "joint_token": 15,
            "one": 1,
            "head_channel": 64,
        }
        assert all(sizes[name] == known[name] for name in sizes.keys() & known.keys()), tap


def test_costs_nothing_at_full_size():
    with torch.device("meta"):
        from mmdit import MMDiT, MMDiTConfig

        large = MMDiT(MMDiTConfig(dim=1536, depth=2, num_heads=24, pos_embed_size=192))
    shapes = {tap.name: tap.shape for tap in list_taps(large, width=1344, height=768, tokens=333)}
    assert shapes["joint_blocks.0.x_block.attn.ln_q"] == (1, 24, 4032, 64)
    assert shapes["joint_blocks.1.attention"] == (1, 4365, 1536)
    assert str(list_taps(large)[-1]).startswith("output  (batch 1, latent_channel 16, row 128, column 128)")


def test_other_modules_are_refused():
    with pytest.raises(TapError, match="MMDiT, VAE, CLIP or T5, got Linear"):
        list_taps(torch.nn.Linear(2, 2))


def test_several_tensors_of_a_module_are_told_in_one_place(model, inputs):
    """What `SEVERAL` says is what the modules give, in their order; the encoders' names are their own."""
    assert tuple(part.name for part in ENCODED) == CLIPOutput._fields
    outputs = {}
    handles = [
        module.register_forward_hook(lambda module, args, output: outputs.setdefault(module, output))
        for module in model.modules()
        if parts_of(module)
    ]
    model(*inputs())
    for handle in handles:
        handle.remove()
    assert outputs
    for module, output in outputs.items():
        there = [tensor for tensor in output if tensor is not None]
        assert len(there) == len(parts_of(module))
        for tensor, part in zip(there, parts_of(module), strict=True):
            assert tensor.ndim == len(part.meaning.dims)
