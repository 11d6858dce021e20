"""The random weights that `sd35 bench` measures have the keys and shapes of the released files."""

import pytest
import torch

from sd35.bench import of_variant

RELEASED = {
    "MMDiT": ("sd3.5_{}.safetensors", "model.diffusion_model."),
    "VAE": ("sd3.5_{}.safetensors", "first_stage_model."),
    "CLIP-L": ("text_encoders_clip_l.safetensors", ""),
    "CLIP-G": ("text_encoders_clip_g.safetensors", ""),
    "T5": ("diffusers_sd3.5-large_text_encoder_3", ""),
}
"""Part to the list of keys that has it, and their prefix there."""


@pytest.mark.parametrize("part", RELEASED)
@pytest.mark.parametrize("variant", ["medium", "large"])
def test_random_weights_have_the_released_sizes(shapes, variant, part) -> None:
    parts = of_variant(variant, torch.device("meta"), torch.bfloat16, (256,))
    make = {"MMDiT": parts.mmdit, "VAE": parts.vae, **parts.encoders}[part]
    tensors = make().state_dict()
    name, prefix = RELEASED[part]
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == shapes(
        name.format(variant), prefix
    )
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
