"""What a LoRA's file holds is told without the model that it is for."""

import pytest
import torch

from weights import AdapterError
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


def test_one_that_fits_none_is_refused_by_the_nearest(save, kohya):
    path = save(kohya)
    with pytest.raises(AdapterError, match="128 x 128 and the layer's weight 1536 x 1536"):
        inspect_adapter(path)
    assert not is_adapter(save({"final_layer.linear.weight": torch.ones(2, 2)}, name="b.safetensors"))
