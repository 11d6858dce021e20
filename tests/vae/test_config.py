import pytest
import torch

from vae import VAE, VAEConfig


@pytest.mark.parametrize(
    "config",
    [
        VAEConfig(channels=(32, 32, 64, 64), num_res_blocks=1, latent_channels=16),
        VAEConfig(channels=(64, 32, 96), num_res_blocks=3, latent_channels=4),
        VAEConfig(channels=(32,), num_res_blocks=2, latent_channels=16),
    ],
)
def test_shapes_tell_the_config_they_came_from(config):
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in VAE(config).state_dict().items()}
    assert VAEConfig.from_shapes(shapes) == config


@pytest.mark.parametrize(("levels", "factor"), [(1, 1), (3, 4), (4, 8)])
def test_factor(levels, factor):
    assert VAEConfig(channels=(32,) * levels, num_res_blocks=1, latent_channels=16).factor == factor


@pytest.mark.parametrize("channels", [(), (48,), (32, 0), (-32, 32)])
def test_width_must_divide_into_groups(channels):
    with pytest.raises(ValueError, match="multiple of 32"):
        VAEConfig(channels=channels, num_res_blocks=1, latent_channels=16)


@pytest.mark.parametrize(("blocks", "latent"), [(0, 16), (2, 0)])
def test_counts_must_be_positive(blocks, latent):
    with pytest.raises(ValueError, match="at least 1"):
        VAEConfig(channels=(32,), num_res_blocks=blocks, latent_channels=latent)


def test_other_tensors_are_refused_by_name():
    with pytest.raises(ValueError, match=r"encoder\.down\.0\.block\.0\.conv1\.weight.*without the prefix"):
        VAEConfig.from_shapes({"first_stage_model.encoder.down.0.block.0.conv1.weight": (32, 32, 3, 3)})


@pytest.mark.parametrize(
    "name", ["encoder.down.0.block.0.conv1.weight", "encoder.down.1.block.0.conv1.weight"]
)
def test_a_weight_of_wrong_rank_is_refused_by_name(name):
    config = VAEConfig(channels=(32, 32), num_res_blocks=1, latent_channels=4)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in VAE(config).state_dict().items()}
    with pytest.raises(ValueError, match=rf"{name} \(four-dimensional\) is not"):
        VAEConfig.from_shapes(shapes | {name: ()})


def test_an_encoder_without_its_decoder_is_refused():
    shapes = {"encoder.down.0.block.0.conv1.weight": (32, 32, 3, 3)}
    with pytest.raises(ValueError, match=r"decoder\.conv_in\.weight"):
        VAEConfig.from_shapes(shapes)
