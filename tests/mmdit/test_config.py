from dataclasses import replace

import pytest
import torch

from mmdit import ControlNet, ControlNetConfig, MMDiT, MMDiTConfig, ShapeError

RELEASED = {
    "sd3-medium": MMDiTConfig(dim=1536, depth=24, num_heads=24, pos_embed_size=192, qk_norm=False),
    "sd3.5-medium": MMDiTConfig(
        dim=1536, depth=24, num_heads=24, pos_embed_size=384, dual_blocks=tuple(range(13))
    ),
    "sd3.5-large": MMDiTConfig(dim=2432, depth=38, num_heads=38, pos_embed_size=192),
}
UNUSUAL = MMDiTConfig(
    dim=128,
    depth=12,
    num_heads=2,
    pos_embed_size=7,
    context_dim=40,
    pooled_dim=48,
    channels=4,
    patch_size=4,
    dual_blocks=(1, 10, 11),
)


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def on_meta(config: MMDiTConfig) -> MMDiT:
    with torch.device("meta"):
        return MMDiT(config)


@pytest.fixture
def shapes() -> dict[str, torch.Size]:
    return shapes_of(on_meta(UNUSUAL))


@pytest.mark.parametrize("config", [*RELEASED.values(), UNUSUAL], ids=[*RELEASED, "unusual"])
def test_every_size_is_read_off_the_shapes(config):
    assert MMDiTConfig.from_shapes(shapes_of(on_meta(config))) == config


def test_layers_are_counted_by_number_not_by_name(shapes):
    """Block 10 sorts before block 2 as a name."""
    config = MMDiTConfig.from_shapes(dict(sorted(shapes.items())))
    assert (config.depth, config.dual_blocks) == (12, (1, 10, 11))


@pytest.mark.parametrize(
    "name", ["x_embedder.proj.weight", "pos_embed", "context_embedder.weight", "y_embedder.mlp.0.weight"]
)
def test_a_deciding_tensor_that_is_absent_is_named(name, shapes):
    del shapes[name]
    with pytest.raises(ShapeError, match=rf"'{name}'.* is not there"):
        MMDiTConfig.from_shapes(shapes)


def test_a_deciding_tensor_of_wrong_rank_is_named(shapes):
    with pytest.raises(
        ShapeError, match=r"'pos_embed', which must have 3 axes, but it has shape \(49, 128\)"
    ):
        MMDiTConfig.from_shapes(shapes | {"pos_embed": (49, 128)})


def test_a_gap_in_the_layers_is_an_error(shapes):
    kept = {name: shape for name, shape in shapes.items() if not name.startswith("joint_blocks.4.")}
    with pytest.raises(ShapeError, match=r"joint_blocks.0 to joint_blocks.n without a gap"):
        MMDiTConfig.from_shapes(kept)


def test_no_layers_is_an_error(shapes):
    kept = {name: shape for name, shape in shapes.items() if not name.startswith("joint_blocks.")}
    with pytest.raises(ShapeError, match=r"joint_blocks"):
        MMDiTConfig.from_shapes(kept)


CONTROLNET = ControlNetConfig(dim=128, depth=11, num_heads=2, pooled_dim=48, channels=17, patch_size=4)


@pytest.mark.parametrize(
    "config",
    [
        CONTROLNET,
        replace(CONTROLNET, typed=False),
        replace(CONTROLNET, pooled_dim=128, parallel=True),
        replace(CONTROLNET, pooled_dim=128),  # a base whose pooled text is as wide as itself
    ],
    ids=["8B", "without a type", "2B", "8B of a small base"],
)
def test_a_controlnet_is_read_off_its_shapes(config):
    with torch.device("meta"):
        assert ControlNetConfig.from_shapes(shapes_of(ControlNet(config))) == config


@pytest.mark.parametrize(
    "name", ["pos_embed_input.proj.weight", "time_text_embed.text_embedder.linear_1.weight"]
)
def test_a_controlnets_deciding_tensor_that_is_absent_is_named(name):
    with torch.device("meta"):
        shapes = shapes_of(ControlNet(CONTROLNET))
    del shapes[name]
    with pytest.raises(ShapeError, match=name):
        ControlNetConfig.from_shapes(shapes)


@pytest.mark.parametrize("dim", [0, 32, 96])
def test_a_width_that_is_not_made_of_heads_is_refused(dim, shapes):
    with pytest.raises(ShapeError, match=f"a width of {dim} does not divide into heads of 64"):
        MMDiTConfig.from_shapes(shapes | {"x_embedder.proj.weight": (dim, 4, 4, 4)})
    with torch.device("meta"):
        control = shapes_of(ControlNet(CONTROLNET))
    with pytest.raises(ShapeError, match=f"a width of {dim} does not divide into heads of 64"):
        ControlNetConfig.from_shapes(control | {"pos_embed_input.proj.weight": (dim, 17, 4, 4)})
