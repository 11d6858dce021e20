"""What a LoRA's file holds is told without the model that it is for."""

import pytest
import torch

from weights.adapters import inspect_adapter, is_adapter


def test_the_models_that_it_fits_are_named(save):
    stem = "transformer.transformer_blocks.23.attn.to_q.lora"
    path = save(
        {f"{stem}_A.weight": torch.ones(4, 1536).half(), f"{stem}_B.weight": torch.ones(1536, 4).half()}
    )
    assert is_adapter(path)
    report = inspect_adapter(path)
    assert report.fits == ("sd3-medium", "sd3.5-medium")
    assert (report.keys, report.kinds, report.parts) == (2, {"LoRA": 1}, {"mmdit": 1})
    assert (report.ranks, report.scales, report.dtypes) == ((4,), (1.0,), {"float16": 2})
    assert "fits    sd3-medium, sd3.5-medium" in str(report)


def test_one_that_fits_none_is_told_with_what_it_holds(save, kohya):
    path = save(kohya)
    report = inspect_adapter(path)
    assert (report.fits, report.keys, report.kinds) == ((), len(kohya), {"LoRA": 1})
    assert (report.ranks, report.alphas, report.dialect) == ((4,), (1.0,), "lora_unet_ + official names")
    assert "128 x 128 and the layer's weight 1536 x 1536" in report.refused
    assert "fits    none of sd3-medium, sd3.5-medium, sd3.5-large, tiny" in str(report)
    assert not is_adapter(save({"final_layer.linear.weight": torch.ones(2, 2)}, name="b.safetensors"))


@pytest.mark.parametrize(
    ("stem", "what"),
    [
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "Stable Diffusion XL or 1.5"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "Stable Diffusion XL or 1.5"),
        ("transformer.single_transformer_blocks.0.attn.to_q", "FLUX.1"),
    ],
)
def test_one_of_another_model_is_named(save, stem, what):
    tensors = {f"{stem}.lora_down.weight": torch.ones(3, 8), f"{stem}.lora_up.weight": torch.ones(8, 3)}
    report = inspect_adapter(save(tensors | {f"{stem}.alpha": torch.tensor(6.0)}))
    assert report.refused.startswith(f"it is a LoRA of {what}")
    assert (report.kinds, report.parts) == ({"LoRA": 1}, {"a part that is not known": 1})
    assert (report.ranks, report.alphas, report.dtypes) == ((3,), (6.0,), {"float32": 3})


def test_what_is_missing_or_unknown_does_not_keep_the_rest_from_being_told(save):
    stem = "lora_unet_joint_blocks_0_x_block_attn_proj"
    report = inspect_adapter(save({f"{stem}.lora_up.weight": torch.ones(8, 3), f"{stem}.new": torch.ones(1)}))
    assert (report.keys, report.kinds, report.ranks) == (2, {"LoRA": 1, "unknown": 1}, ())
    assert "(1 of 2 keys) has no place" in report.refused
