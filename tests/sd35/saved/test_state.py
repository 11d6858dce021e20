"""Latents and companions in files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from sd35 import SettingsError, State


@pytest.fixture(scope="module")
def result(pipe):
    return pipe.generate(["a", "b"], steps=3, solver="reversible_heun", guidance_scale=1.5)


def test_a_state_survives_its_file(result, tmp_path) -> None:
    (path,) = result.state().save(tmp_path / "a.safetensors")
    loaded = State.load(path)
    assert loaded.settings == result.settings
    assert torch.equal(loaded.latents, result.latents)
    assert loaded.noise is None
    assert loaded.companion.fingerprint == result.companion.fingerprint
    assert loaded.companion.tensors.keys() == result.companion.tensors.keys()
    for name, tensor in result.companion.tensors.items():
        assert torch.equal(loaded.companion.tensors[name], tensor)


def test_a_state_without_companion(pipe, tmp_path) -> None:
    result = pipe.generate("a", steps=1)
    loaded = State.load(*result.state().save(tmp_path / "a.safetensors"))
    assert loaded.companion is None
    with pytest.raises(FileExistsError):
        result.state().save(tmp_path / "a.safetensors")
    with pytest.raises(SettingsError, match=r"\.safetensors"):
        result.state().save(tmp_path / "a.pt")


def test_other_files_are_refused(tmp_path, model_folder) -> None:
    with pytest.raises(SettingsError, match="is no saved state"):
        State.load(model_folder / "sd3.5_random.safetensors")
    with pytest.raises(FileNotFoundError):
        State.load(tmp_path / "absent.safetensors")
    (tmp_path / "no.safetensors").write_bytes(b"rubbish")
    with pytest.raises(SettingsError, match="cannot be read as safetensors"):
        State.load(tmp_path / "no.safetensors")


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"latents": torch.zeros(3)}, {}, "latents are torch.float32"),
        ({"latents": torch.zeros(1, 16, 4, 4, dtype=torch.int8)}, {}, "latents are torch.int8"),
        ({"companion.z": torch.zeros(1)}, {}, "its companion has no settings"),
        ({"companion.z": torch.zeros(1)}, {"companion": "{"}, "its companion has no settings"),
        ({"noise": torch.zeros(1, 1, 1, 1)}, {"settings": "x"}, "saved settings are damaged"),
    ],
)
def test_damaged_states_are_refused(result, tmp_path, tensors, metadata, message) -> None:
    whole = {"format": "sd35.State 1", "settings": result.settings.to_json()}
    save_file(tensors, tmp_path / "a.safetensors", whole | metadata)
    with pytest.raises(SettingsError, match=message):
        State.load(tmp_path / "a.safetensors")


def test_the_settings_in_the_file_are_json(result, tmp_path) -> None:
    from safetensors import safe_open

    with safe_open(*result.state().save(tmp_path / "a.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["settings"])["solver"] == "reversible_heun"
    assert json.loads(metadata["companion"])["solver"] == "reversible_heun"
