"""A LoRA that was trained here, in diffusers, and its names in sd-scripts; skipped by name elsewhere."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import weights
from sd35.train.fresh import fresh_lora, save_lora
from sd35.train.targets import target_paths


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch):
    for name in ("diffusers", "transformers", "peft"):
        pytest.importorskip(name, reason="needs the extra 'reference'")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(sys, "argv", ["live.py"])
    import live_reference

    return live_reference


def learned(model, targets, *, dora, rank=3):
    """A LoRA on a model, with matrices that do something."""
    parameters = fresh_lora(model, {"mmdit": target_paths(model, targets)}, rank=rank, alpha=1.5, dora=dora)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if not name.endswith("magnitude"):
                parameter.normal_(0, 0.2, generator=source)


@pytest.mark.parametrize("dora", [False, True])
def test_diffusers_draws_what_is_drawn_here(theirs, tmp_path, dora) -> None:
    from diffusers import SD3Transformer2DModel

    theirs.random_folder(tmp_path / "model", "diffusers")
    ours = weights.load_mmdit(tmp_path / "model", dtype=torch.float32)
    learned(ours, ("blocks",), dora=dora)
    save_lora(ours, tmp_path / "lora.safetensors", "diffusers")
    other = SD3Transformer2DModel.from_pretrained(
        tmp_path / "model" / "transformer", torch_dtype=torch.float32
    )
    other.load_lora_adapter(str(tmp_path / "lora.safetensors"), prefix="transformer")

    config, source = ours.config, torch.Generator().manual_seed(1)
    latents = torch.randn(2, config.channels, 8, 6, generator=source)
    context = torch.randn(2, 5, config.context_dim, generator=source)
    pooled = torch.randn(2, config.pooled_dim, generator=source)
    sigma = torch.tensor([0.02, 0.4])
    with torch.no_grad():
        expected = other(latents, context, pooled, 1000 * sigma).sample
        other.disable_lora()
        without = other(latents, context, pooled, 1000 * sigma).sample
        found = ours(latents, sigma, context, pooled)
    assert (expected - without).abs().max() > 0.05 * expected.abs().max()
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_kohya_has_the_names_and_shapes_of_sd_scripts(shared_reference, tmp_path) -> None:
    """Every layer that sd-scripts trains by default and this project as well is spelled alike."""
    stored = shared_reference / "adapters" / "lora" / "kohya_default.safetensors"
    with safe_open(shared_reference / "parity" / "mmdit_qknorm_dual.safetensors", "pt") as file:
        state = {
            key.removeprefix("weights/").removeprefix("model.diffusion_model."): file.get_tensor(key).float()
            for key in file.keys()  # noqa: SIM118
            if key.startswith("weights/")
        }
    model = weights.build_mmdit(state).float()
    model.load_state_dict(state)
    learned(model, ("blocks",), dora=False)
    save_lora(model, tmp_path / "lora.safetensors", "kohya")
    with safe_open(stored, "pt") as file, safe_open(tmp_path / "lora.safetensors", "pt") as own:
        theirs = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        ours = {key: own.get_slice(key).get_shape() for key in own.keys()}  # noqa: SIM118
    assert set(theirs) == set(ours)
    for key, shape in theirs.items():
        fused = "qkv" in key
        if key.endswith(".lora_down.weight"):
            assert ours[key] == [9 if fused else 3, shape[1]]
        elif key.endswith(".lora_up.weight"):
            assert ours[key] == [shape[0], 9 if fused else 3]
