"""A small model's shapes, and LoRA files for it in the spelling of two trainers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmdit import MMDiT, MMDiTConfig

Tensors = dict[str, Tensor]


@pytest.fixture(scope="session")
def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of an MM-DiT with three blocks, the first two of them dual."""
    config = MMDiTConfig(
        dim=128, depth=3, num_heads=2, pos_embed_size=8, context_dim=96, pooled_dim=192, dual_blocks=(0, 1)
    )
    with torch.device("meta"):
        module = MMDiT(config)
    return {"mmdit": {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}}


@pytest.fixture
def peft() -> Tensors:
    """A LoRA as diffusers saves it: q and v of one layer, and the last block's swapped modulation."""
    generator = torch.Generator().manual_seed(3)
    rows = {"attn.to_q": 128, "attn.to_v": 128, "norm1_context.linear": 256}
    return {
        f"transformer.transformer_blocks.2.{name}.lora_{side}.weight": torch.randn(
            (4, 128) if side == "A" else (height, 4), generator=generator
        )
        for name, height in rows.items()
        for side in "AB"
    }


@pytest.fixture
def kohya() -> Tensors:
    """A LoRA as sd-scripts saves it: one layer, alpha 1 and rank 4."""
    stem = "lora_unet_joint_blocks_0_x_block_attn_proj"
    generator = torch.Generator().manual_seed(4)
    return {
        f"{stem}.alpha": torch.tensor(1.0),
        f"{stem}.lora_down.weight": torch.randn(4, 128, generator=generator),
        f"{stem}.lora_up.weight": torch.randn(128, 4, generator=generator),
    }


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write tensors to a file of the test's own."""

    def write(tensors: Tensors, metadata: dict[str, str] | None = None, name: str = "a.safetensors") -> Path:
        path = tmp_path / name
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)
        return path

    return write
