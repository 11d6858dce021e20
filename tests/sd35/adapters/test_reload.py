"""LoRAs on text encoders that are loaded anew for each prompt: the bits of those that stay."""

import pytest
import torch
from safetensors.torch import save_file

import sd35
from sd35 import SettingsError, load, lora_parameters, loras_on, set_lora
from weights.load import Loader

LAYERS = {
    "transformer.transformer_blocks.0.attn.to_q": (64, 64),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (8, 8),
    "text_encoder.text_model.encoder.layers.1.mlp.fc1": (32, 8),
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc2": (16, 32),
    "text_encoder_3.encoder.block.0.layer.0.SelfAttention.o": (32, 16),
}


def write(path, seed, magnitudes=()):
    """A LoRA of every part; a DoRA on the layers that are named."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for layer, (rows, columns) in LAYERS.items():
        tensors[f"{layer}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
        if layer in magnitudes:
            tensors[f"{layer}.lora_magnitude_vector"] = torch.rand(rows, generator=generator)
    save_file(tensors, path)
    return path


@pytest.fixture
def files(tmp_path):
    dora = write(tmp_path / "dora.safetensors", 2, magnitudes=list(LAYERS)[-2:])
    return write(tmp_path / "style.safetensors", 1), dora


def encoded(pipe):
    encoding = pipe.encode_prompt(["a red circle", ""])
    return torch.cat([encoding.context.flatten(), encoding.pooled.flatten()])


@pytest.mark.parametrize("merges", [(False, False), (True, False), (False, True), (True, True)])
def test_a_lora_on_encoders_that_come_and_go_gives_the_same_bits(model_folder, files, merges) -> None:
    staying, coming = load(model_folder), load(model_folder, one_by_one=True)
    bare = encoded(staying)
    seen = [bare]

    def same() -> None:
        assert torch.equal(encoded(coming), encoded(staying))
        assert not any(torch.equal(encoded(staying), one) for one in seen)
        assert loras_on(coming) == loras_on(staying)
        seen.append(encoded(staying))

    for file, merge in zip(files, merges, strict=True):
        there, here = (pipe.add_lora(file, 0.7, merge=merge) for pipe in (staying, coming))
        key = "{0.part} {0.path}".format
        assert sorted(here.rows, key=key) == sorted(there.rows, key=key)
        assert (here.keys, here.passed_over) == (there.keys, {})
        same()
    for pipe in (staying, coming):
        pipe.set_lora("style", 0.3)
    same()
    drawn = [pipe.generate("a red circle", steps=1).image for pipe in (staying, coming)]
    assert torch.equal(*drawn)
    for pipe in (staying, coming):
        pipe.remove_lora("style")
    same()
    for pipe in (staying, coming):
        pipe.remove_lora("dora")
        assert torch.equal(encoded(pipe), bare)
        assert loras_on(pipe) == ()


def test_it_stays_when_the_pipeline_moves_and_by_either_level_of_memory(model_folder, files) -> None:
    staying = load(model_folder, lora=files[0])
    for level in ("low", "lowest"):
        pipe = sd35.load(model_folder, memory=level, lora=files[0])
        assert isinstance(pipe.text.t5, Loader)
        assert torch.equal(encoded(pipe), encoded(staying))
    assert torch.equal(encoded(pipe.to(dtype=torch.bfloat16)), encoded(staying.to(dtype=torch.bfloat16)))


def test_mistakes_are_told(model_folder, files) -> None:
    pipe = load(model_folder, one_by_one=True, lora=files[0])
    with pytest.raises(SettingsError, match="already a LoRA 'style'"):
        pipe.add_lora(files[0])
    with pytest.raises(SettingsError, match="'style' is on a text encoder that is loaded anew"):
        lora_parameters(pipe, "style")
    with pytest.raises(SettingsError, match=r"there is no LoRA 'x' here; there are style"):
        set_lora(pipe, "x", 1)
