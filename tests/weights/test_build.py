"""What no tensor tells is as the model's own config says, or the part is refused by name."""

import json

import pytest
import torch

import weights
from vae.model import SCALE, SHIFT
from weights import FitError
from weights.build import CONSTANTS


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("vae", "scaling_factor", 0.3611),
        ("vae", "shift_factor", 0.1159),
        ("vae", "shift_factor", None),
        ("vae", "norm_num_groups", 16),
        ("mmdit", "attention_head_dim", 128),
        ("mmdit", "qk_norm", "layer_norm"),
        ("clip_l", "layer_norm_eps", 1e-6),
        ("t5", "feed_forward_proj", "gated-silu"),
        ("t5", "relative_attention_max_distance", 64),
    ],
)
def test_a_config_that_contradicts_a_constant_is_refused_by_name(tmp_path, writers, parts, part, name, value):
    path = writers["write"](tmp_path / f"{part}.safetensors", parts[part])
    config = tmp_path / "config.json"
    config.write_text(json.dumps({key: values[-1] for key, values in CONSTANTS[part].items()}))
    assert weights.inspect(path).components[part].is_complete
    config.write_text(json.dumps({name: value}))
    (misfit,) = weights.inspect(path).components[part].misfits
    assert f"says {name} {value}" in misfit.name
    load = {"vae": weights.load_vae, "mmdit": weights.load_mmdit, "t5": weights.load_t5}
    with pytest.raises(FitError, match=f"says {name} {value}.*would give wrong results"):
        load.get(part, weights.load_clip)(path)


def test_another_models_autoencoder_is_named_by_its_factor(tmp_path, writers, parts):
    path = writers["write"](tmp_path / "vae.safetensors", parts["vae"])
    (tmp_path / "config.json").write_text('{"scaling_factor": 0.3611, "shift_factor": 0.1159}')
    with pytest.raises(FitError, match=r"scaling_factor 0\.3611 \(FLUX\.1's\), .* with 1\.5305"):
        weights.load_vae(path)
    (tmp_path / "config.json").write_text(json.dumps({"scaling_factor": SCALE, "shift_factor": SHIFT}))
    assert weights.load_vae(path) is not None


def test_the_default_device_decides_nothing(diffusers, parts):
    before = str(weights.inspect(diffusers, values=True))
    with torch.device("meta"):
        assert str(weights.inspect(diffusers, values=True)) == before
        loaded = weights.load_mmdit(diffusers).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in parts["mmdit"].items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_decides_nothing(official, diffusers, parts, dtype):
    usual = torch.get_default_dtype()
    before = str(weights.inspect(diffusers, values=True))
    try:
        torch.set_default_dtype(dtype)
        assert str(weights.inspect(diffusers, values=True)) == before
        loaded = {
            "mmdit": weights.load_mmdit(official),
            "vae": weights.load_vae(official),
            "t5": weights.load_t5(official),
        }
        built = weights.build_mmdit({name: tuple(tensor.shape) for name, tensor in parts["mmdit"].items()})
    finally:
        torch.set_default_dtype(usual)
    assert {tensor.dtype for tensor in built.state_dict().values()} == {torch.float32}
    for part, module in loaded.items():
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, parts[part][name]), name
            assert tensor.dtype == parts[part][name].dtype
