"""Where the training of the embedded model may write, and what it writes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sd35 import SettingsError
from sd35.tiny import recipe

WRITTEN = [
    "sd3.5_tiny.safetensors",
    "text_encoders/clip_g.safetensors",
    "text_encoders/clip_l.safetensors",
    "text_encoders/t5xxl_fp16.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/vocab.json",
    "tokenizer_3/tokenizer.json",
]


@pytest.fixture
def stages(monkeypatch) -> list[str]:
    """The three stages, which learn nothing here; filled with the names of those that ran."""
    ran: list[str] = []
    # As the real one leaves its stage: encoding is faster in this layout, which files do not have.
    vae = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    names = ("mmdit", "clip_l", "clip_g", "t5")
    results = {"train_joint": vae, "train_decoder": vae}
    results["train_painter"] = SimpleNamespace(**{name: nn.Linear(2, 2) for name in names})
    for name, result in results.items():
        monkeypatch.setattr(
            recipe, name, lambda *_, name=name, result=result, **__: ran.append(name) or result
        )
    return ran


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_run_goes_on_in_its_own_folder_and_ends_alike(tmp_path: Path, stages) -> None:
    output = tmp_path / "new" / "model"
    recipe.train(output)
    first = files(output)
    assert sorted(first) == WRITTEN
    assert stages == ["train_joint", "train_painter", "train_decoder"]
    weights = load_file(output / "sd3.5_tiny.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert set(weights) == {
        f"{part}.{name}"
        for part in ("model.diffusion_model", "first_stage_model")
        for name in ("weight", "bias")
    }
    recipe.train(output)
    assert files(output) == first


@pytest.mark.parametrize("kept", [*WRITTEN, "sd3.5_medium.safetensors"])
def test_a_model_that_no_run_made_there_is_left_alone(tmp_path: Path, stages, kept: str) -> None:
    (tmp_path / kept).parent.mkdir(exist_ok=True)
    (tmp_path / kept).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists and was not made by a training in"):
        recipe.train(tmp_path)
    assert files(tmp_path) == {kept: b"mine"}
    assert stages == []


def test_a_torch_without_muon_is_refused_before_anything(tmp_path: Path, stages, monkeypatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(SettingsError, match=r"Muon of torch 2\.9; this is torch"):
        recipe.train(tmp_path / "new")
    assert (stages, list(tmp_path.iterdir())) == ([], [])


def test_other_files_are_no_reason_to_refuse(tmp_path: Path, stages) -> None:
    (tmp_path / "train.log").write_bytes(b"")
    recipe.train(tmp_path)
    assert sorted(files(tmp_path)) == sorted(["train.log", *WRITTEN])
