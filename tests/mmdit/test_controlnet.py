from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmdit import ControlNet, ControlNetConfig, MMDiT

SEQUENTIAL = ControlNetConfig(dim=64, depth=2, num_heads=2, pooled_dim=12)
PARALLEL = replace(SEQUENTIAL, pooled_dim=64, parallel=True)


@pytest.fixture(params=[SEQUENTIAL, PARALLEL], ids=["8B", "2B"])
def net(request, drawn) -> ControlNet:
    return drawn(ControlNet(request.param), seed=5).eval()


@pytest.fixture
def base(build) -> MMDiT:
    return build()


@pytest.fixture
def control() -> Tensor:
    return torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(6))


def residuals_of(net: ControlNet, base: MMDiT, inputs: dict[str, Tensor], control: Tensor, **kwargs):
    return net(base, inputs["latents"], inputs["sigma"], inputs["pooled"], control, **kwargs)


def test_one_residual_a_block(net, base, inputs, control):
    residuals = residuals_of(net, base, inputs, control)
    assert [residual.shape for residual in residuals] == [(2, 6, 64)] * 2
    assert (base(**inputs, residuals=residuals) - base(**inputs)).abs().max() > 1e-2


def test_paths_are_the_files_keys():
    stems = {
        "pos_embed_input.proj",
        *(f"time_text_embed.{name}_embedder.linear_{n}" for name in ("timestep", "text") for n in (1, 2)),
        *(f"controlnet_blocks.{i}" for i in range(2)),
        *(
            f"transformer_blocks.{i}.{name}"
            for i in range(2)
            for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
        ),
    }
    expected = {f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")}
    assert ControlNet(SEQUENTIAL).state_dict().keys() == expected | {"control_type"}
    assert ControlNet(replace(SEQUENTIAL, typed=False)).state_dict().keys() == expected
    own = {"control_type", "pos_embed.proj.weight", "pos_embed.proj.bias"}
    assert ControlNet(PARALLEL).state_dict().keys() == expected | own


def test_the_type_stays_an_integer():
    net = ControlNet(SEQUENTIAL).to(torch.bfloat16)
    assert net.control_type is not None
    assert net.control_type.dtype == torch.int32


def test_scale_is_the_strength(net, base, inputs, control):
    full, half, none = (residuals_of(net, base, inputs, control, scale=scale) for scale in (1.0, 0.5, 0.0))
    for one, two, three in zip(full, half, none, strict=True):
        assert torch.equal(two, one / 2)
        assert not three.any()
    assert torch.equal(base(**inputs, residuals=none), base(**inputs))


def test_one_control_picture_serves_the_batch(net, base, inputs, control):
    net, base, control = net.double(), base.double(), control.double()
    shared = residuals_of(net, base, inputs, control[:1])
    repeated = residuals_of(net, base, inputs, control[:1].expand(2, -1, -1, -1))
    for one, two in zip(shared, repeated, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["latents", "sigma", "pooled"])
def test_every_input_matters(name, net, base, inputs, control):
    before = residuals_of(net, base, inputs, control)[-1]
    after = residuals_of(net, base, inputs | {name: inputs[name] * 0.9}, control)[-1]
    assert (before - after).abs().max() > 1e-3
    assert (residuals_of(net, base, inputs, control + 0.1)[-1] - before).abs().max() > 1e-3


def test_blocks_follow_one_another_or_stand_side_by_side(net, base, inputs, control):
    """A change to the first block reaches the second residual in the 8B kind alone."""
    before = residuals_of(net, base, inputs, control)
    net.transformer_blocks[0].mlp.fc2.bias.add_(1)
    after = residuals_of(net, base, inputs, control)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1]) == net.config.parallel


def test_only_the_8b_kind_uses_the_bases_patches_and_positions(net, base, inputs, control):
    before = residuals_of(net, base, inputs, control)
    base.pos_embed.add_(1)
    base.x_embedder.proj.bias.add_(1)
    after = residuals_of(net, base, inputs, control)
    assert torch.equal(after[0], before[0]) == net.config.parallel


def test_only_the_2b_kind_uses_the_bases_pooled_embedding(net, base, inputs, control):
    before = residuals_of(net, base, inputs, control)
    base.y_embedder.mlp[2].bias.add_(1)
    after = residuals_of(net, base, inputs, control)
    assert torch.equal(after[0], before[0]) != net.config.parallel


@pytest.mark.parametrize(
    ("of_net", "of_base"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_net_and_base_may_differ_in_dtype(of_net, of_base, net, build, inputs, control):
    expected = residuals_of(net, build(), inputs, control)
    residuals = residuals_of(net.to(of_net), build(dtype=of_base), inputs, control)
    for actual, exact in zip(residuals, expected, strict=True):
        assert actual.dtype == of_net
        assert (actual - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_base_of_another_width(net, build, inputs, control):
    with pytest.raises(ValueError, match=r"base of width 64, and the base given has width 128"):
        residuals_of(net, build(dim=128), inputs, control)


def test_a_base_of_another_pooled_text(drawn, build, inputs, control):
    net = drawn(ControlNet(SEQUENTIAL))
    with pytest.raises(ValueError, match=r"pooled text of 12, its base one of 20"):
        residuals_of(net, build(pooled_dim=20), inputs, control)


def test_a_pooled_text_that_does_not_fit(net, base, inputs, control):
    with pytest.raises(ValueError, match=r"pooled must be \(2, 12\), got \(2, 13\)"):
        residuals_of(net, base, inputs | {"pooled": torch.zeros(2, 13)}, control)


@pytest.mark.parametrize("shape", [(2, 16, 4, 4), (3, 16, 4, 6), (2, 4, 4, 6), (16, 4, 6)])
def test_control_latents_that_do_not_fit(shape, net, base, inputs):
    with pytest.raises(ValueError, match=r"control_latents must be \(1, 16, 4, 6\) or \(2, 16, 4, 6\)"):
        residuals_of(net, base, inputs, torch.zeros(shape))


def test_the_released_size_on_the_meta_device():
    """The three official files: 8.65 GB in float32, of which a layer that is never run is 0.04."""
    with torch.device("meta"):
        net = ControlNet(ControlNetConfig(dim=2432, depth=19, num_heads=38))
    assert sum(parameter.numel() for parameter in net.parameters()) == 2_153_518_976
