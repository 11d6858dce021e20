"""Captures in a file."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sd35.taps import Captures, TapError, capture
from sd35.taps.captures import FORMAT


@pytest.fixture
def taps(model, generate) -> Captures:
    with capture(model, "joint_blocks.0.*", "patches", "**.attn.v", steps=[1]) as taps:
        generate(model)
    return taps


def test_a_file_holds_everything(taps, tmp_path):
    taps.save(tmp_path / "taps.safetensors")
    loaded = Captures.load(tmp_path / "taps.safetensors")
    assert len(loaded.records) == len(taps.records)
    for old, new in zip(taps.records, loaded.records, strict=True):
        assert torch.equal(old.tensor, new.tensor)
        assert (old.tap, old.dims, old.step, old.sigma, old.branch, old.samples) == (
            (new.tap, new.dims, new.step, new.sigma, new.branch, new.samples)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["taps.safetensors"]


def test_the_description_is_json(taps, tmp_path):
    taps.save(tmp_path / "taps.safetensors")
    with safe_open(tmp_path / "taps.safetensors", "pt") as file:
        described = json.loads(file.metadata()["records"])
        assert len(file.keys()) == len(described)
    patches = next(one for one in described if one["tap"] == "patches")
    assert patches["dims"] == ["batch", "image_token", "channel"]
    assert (patches["step"], patches["branch"], patches["samples"]) == (1, "cond", [0])


def test_tensors_that_share_memory_and_gradients(model, inputs, tmp_path):
    latents, *others = inputs()
    with capture(model, "output", "output") as taps, capture(model, "output") as same:
        model(latents.requires_grad_(), *others)
    both = Captures([*taps.records, *same.records])
    both.save(tmp_path / "both.safetensors")
    assert Captures.load(tmp_path / "both.safetensors").stack("output").shape == (2, 2, 16, 8, 8)


def test_files_that_are_there_or_are_something_else(taps, tmp_path):
    path = tmp_path / "taps.safetensors"
    assert taps.save(path) == [path]
    with pytest.raises(FileExistsError):
        taps.save(path)
    taps.select("patches").save(path, overwrite=True)
    assert list(Captures.load(path)) == ["patches"]
    with pytest.raises(ValueError, match=r"must be a \.safetensors file"):
        taps.save(tmp_path / "taps.pt")
    with pytest.raises(FileNotFoundError):
        Captures.load(tmp_path / "none.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TapError, match="damaged"):
        Captures.load(path)


@pytest.mark.parametrize("records", ["", "[{", "3", "[3]", '[{"tap": "a"}, {"tap": "b"}]', '[{"name": "a"}]'])
def test_a_description_that_is_damaged(tmp_path, records):
    path = tmp_path / "taps.safetensors"
    save_file({"000000": torch.zeros(2)}, path, {"format": FORMAT, "records": records})
    with pytest.raises(TapError, match="damaged"):
        Captures.load(path)


def test_is_a_mapping_that_describes_itself(taps):
    assert list(taps.select("joint_blocks.*.x", branch="cond")) == ["joint_blocks.0.x"]
    assert "joint_blocks.0.x: (batch 1, image_token 16, channel 128) x 2" in repr(taps)
    with pytest.raises(
        TapError, match=r"nothing was captured of 'joint_blocks.1.x'; did you mean joint_blocks.0.x"
    ):
        taps["joint_blocks.1.x"]
    with pytest.raises(TapError, match="several shapes"):
        Captures(
            [
                *taps.of("patches"),
                *(r.__class__("patches", r.tensor[:, 1:], None) for r in taps.of("patches")),
            ]
        ).stack("patches")
