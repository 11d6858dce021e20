"""A small autoencoder with random weights, and one with the weights of the reference activations."""

import json

import pytest
import torch
from safetensors import safe_open

from vae import VAE, VAEConfig


@pytest.fixture
def small() -> VAE:
    """Two widths, one block, eight pixels a latent; decodes to about [-1, 1] and somewhat beyond."""
    generator = torch.Generator().manual_seed(0)
    vae = VAE(VAEConfig(channels=(32, 32, 32, 64), num_res_blocks=1, latent_channels=16)).requires_grad_(
        False
    )
    for name, parameter in sorted(vae.named_parameters()):
        if parameter.ndim == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    vae.decoder.conv_out.weight.mul_(0.8)
    return vae


@pytest.fixture(scope="session")
def golden(shared_reference):
    """The stored tensors, and under "config" the settings they were made with."""
    with safe_open(shared_reference / "parity" / "vae.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()} | {  # noqa: SIM118 - not a mapping
            "config": json.loads(file.metadata()["config"])
        }


@pytest.fixture(scope="session")
def golden_weights(golden):
    """The stored weights by their names in a module, widened from float16 without loss."""
    prefix = "weights/first_stage_model."
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


@pytest.fixture
def golden_vae(golden_weights):
    """Builds the autoencoder of the stored activations in a dtype."""

    def build(dtype: torch.dtype = torch.float32) -> VAE:
        vae = VAE(VAEConfig.from_shapes({name: value.shape for name, value in golden_weights.items()}))
        vae.load_state_dict(golden_weights)
        return vae.to(dtype).requires_grad_(False)

    return build
