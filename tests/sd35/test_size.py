"""The size that a model was trained at, and the sizes that it draws."""

import json

import pytest
from safetensors.torch import load_file, save_file

from sd35 import SettingsError
from sd35.size import Size, check_size, native_size
from weights import resolve


def size_of(source) -> Size:
    return native_size(resolve(source, ["mmdit"]).component("mmdit"))


def test_the_file_says_its_size(model_folder) -> None:
    assert size_of(model_folder) == Size(32, 32)


def test_a_file_that_says_nothing_has_the_released_size_or_what_its_positions_cover(
    model_folder, tmp_path
) -> None:
    tensors = load_file(model_folder / "sd3.5_random.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")
    assert size_of(tmp_path / "model.safetensors") == Size(128, 128)  # 8 positions of 16 pixels
    tensors["model.diffusion_model.pos_embed"] = tensors["model.diffusion_model.pos_embed"].new_zeros(
        1, 192**2, 64
    )
    save_file(tensors, tmp_path / "model.safetensors")
    assert size_of(tmp_path / "model.safetensors") == Size(1024, 1024)


def test_the_config_of_a_diffusers_folder_counts_latents(model_folder, tmp_path) -> None:
    prefix, tensors = "model.diffusion_model.", load_file(model_folder / "sd3.5_random.safetensors")
    bare = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
    save_file(bare, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"sample_size": 12}))
    assert size_of(tmp_path / "model.safetensors") == Size(96, 96)


def test_positions_bound_the_size(pipe) -> None:
    check_size(128, 16, pipe.mmdit.config, pipe.vae.config)
    with pytest.raises(SettingsError, match=r"height must be at most 128, .* got 144"):
        check_size(128, 144, pipe.mmdit.config, pipe.vae.config)
