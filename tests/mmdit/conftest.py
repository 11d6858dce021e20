"""Small models with random weights, inputs for them, and the stored tables of the original code."""

import json
from collections.abc import Callable, Iterator

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from mmdit import MMDiT, MMDiTConfig

SIZES = {"dim": 64, "depth": 3, "num_heads": 2, "pos_embed_size": 5, "context_dim": 24, "pooled_dim": 12}


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every weight, so that no gate is shut and no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    for _, tensor in sorted(module.state_dict().items()):
        if tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5)
    return module


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def drawn() -> Callable[..., nn.Module]:
    """Give a module random weights."""
    return randomise


@pytest.fixture
def build() -> Callable[..., MMDiT]:
    """Build a small model of all three kinds of block; fields of the config can be changed."""

    def make(*, dtype: torch.dtype = torch.float32, **changes) -> MMDiT:
        config = MMDiTConfig(**(SIZES | {"dual_blocks": (0,)} | changes))
        model = MMDiT(config)
        randomise(model)
        return model.to(dtype).eval()

    return make


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """A batch of two for the small model: 2 x 3 patches, four context tokens."""
    generator = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(2, 16, 4, 6, generator=generator),
        "sigma": torch.tensor([0.25, 0.9]),
        "context": torch.randn(2, 4, 24, generator=generator),
        "pooled": torch.randn(2, 12, generator=generator),
    }


@pytest.fixture(scope="session")
def tables(shared_reference) -> dict[str, Tensor]:
    """Position table, timestep embedding and norms of the original code, and under "config" their sizes."""
    with safe_open(shared_reference / "parity" / "tables.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return tensors | {"config": json.loads(file.metadata()["config"])}
