"""From a source to a pipeline: what is checked first, the dtypes of parts, encoders that are left out."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import flow
from sd35 import SettingsError, load
from textenc import Encoding
from weights import FitError, SourceError, load_textenc

STEPS = 2


@pytest.fixture
def nothing_is_read(monkeypatch) -> None:
    """A weight that is read fails the test."""

    def fail(*_arguments) -> None:
        pytest.fail("weights were read")

    monkeypatch.setattr("weights.load.load_into", fail)


def without(source, name: str, path):
    """A copy of the tensors of one file, but for one of them."""
    tensors = load_file(source)
    del tensors[name]
    save_file(tensors, path)
    return path


@pytest.mark.usefixtures("nothing_is_read")
def test_a_part_that_does_not_fit_is_found_before_weights_are_read(model_folder, tmp_path) -> None:
    whole = model_folder / "sd3.5_random.safetensors"
    for name in ("first_stage_model.decoder.conv_in.bias", "model.diffusion_model.final_layer.linear.bias"):
        path = without(whole, name, tmp_path / "part.safetensors")
        with pytest.raises(FitError, match=name):
            load(path, text=model_folder)
    vae = without(whole, "first_stage_model.decoder.conv_in.bias", tmp_path / "vae.safetensors")
    with pytest.raises(FitError, match=r"decoder\.conv_in\.bias"):
        load(model_folder, vae=vae)
    with pytest.raises(SourceError, match="there is no file or folder"):
        load(model_folder, vae=tmp_path / "absent.safetensors")


@pytest.mark.usefixtures("nothing_is_read")
@pytest.mark.parametrize("one_by_one", [False, True])
def test_every_text_encoder_is_checked_before_one_is_read(model_folder, tmp_path, one_by_one) -> None:
    own, name = model_folder / "text_encoders" / "t5xxl_fp16.safetensors", "encoder.block.0.layer.0"
    t5 = without(own, f"{name}.layer_norm.weight", tmp_path / "t5.safetensors")
    with pytest.raises(FitError, match=name):
        load(model_folder, t5=t5, one_by_one=one_by_one)


def test_each_part_may_have_its_own_dtype(model_folder) -> None:
    dtypes = {"mmdit": torch.bfloat16, "t5": torch.float16}
    others = dict.fromkeys(("vae", "clip_l", "clip_g"), torch.float32)
    assert load(model_folder, dtype=dtypes).dtypes == dtypes | others
    assert load(model_folder, dtype=dtypes, one_by_one=True).dtypes == dtypes | others
    with pytest.raises(SettingsError, match=r"dtype is of the parts mmdit, .*; got transformer"):
        load(model_folder, dtype={"transformer": torch.float32})
    encoders = load_textenc(model_folder, dtype={"clip_l": torch.float32})
    kept = [next(one.parameters()).dtype for one in (encoders.clip_l, encoders.clip_g, encoders.t5)]
    assert kept == [torch.float32, torch.float16, torch.float16]  # None keeps what a file holds


def kept(encoding: Encoding, path) -> Encoding:
    """Written to a file, and read from it."""
    tensors, metadata = encoding.to_tensors()
    save_file(tensors, path, metadata)
    with safe_open(path, framework="pt") as file:
        return Encoding.from_tensors({name: file.get_tensor(name) for name in tensors}, file.metadata())


def test_prompts_that_were_encoded_before_need_no_text_encoders(pipe, model_folder, tmp_path) -> None:
    prompt = kept(pipe.encode_prompt("a red circle"), tmp_path / "prompt.safetensors")
    negative = kept(pipe.encode_prompt(""), tmp_path / "negative.safetensors")
    drawn = pipe.generate("a red circle", steps=STEPS)
    alone = load(model_folder, text=False)
    with pytest.raises(SettingsError, match=r"give pipe\.velocity two Encodings"):
        alone.generate("a red circle", steps=STEPS)
    velocity = alone.velocity(prompt, negative, guidance_scale=4.5)
    latents = flow.solve(velocity, drawn.noise.to(alone.device), flow.sigmas(STEPS))
    assert torch.equal(alone.decode(latents), drawn.image)
