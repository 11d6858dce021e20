"""A compiled model draws what it drew, and follows what is put into it."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

import sd35
from sd35 import SettingsError, load


@pytest.fixture(scope="module")
def compiled(model_folder) -> Iterator[sd35.Pipeline]:
    """Without a compiler: graphs are traced, guarded and run as they are; once, for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        torch.compiler.reset()
        yield shortened(load(model_folder, compile=True))


def shortened(pipe: sd35.Pipeline) -> sd35.Pipeline:
    """With its first block alone, a dual one: tests/mmdit/test_speed.py compiles every kind."""
    pipe.mmdit.joint_blocks = pipe.mmdit.joint_blocks[:1]
    pipe.mmdit.config = replace(pipe.mmdit.config, depth=1)
    return pipe


def test_a_compiled_model_draws_the_picture_and_follows_what_is_changed(
    compiled, model_folder, tmp_path
) -> None:
    options = {"steps": 2, "seed": 1}
    eager = shortened(load(model_folder))
    assert "compiled by block" in compiled.notes[0]
    expected = eager.generate("a", **options)
    drawn = compiled.generate("a", **options)
    assert (drawn.image - expected.image).abs().max() < 1e-4
    assert drawn.settings.made_with["compiled"] == "by block"
    assert "compiled" not in expected.settings.made_with

    path, generator = "joint_blocks.0.x_block.attn.qkv", torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 64, generator=generator), torch.randn(192, 2, generator=generator)
    lora = tmp_path / "lora.safetensors"
    key = f"lora_unet_{path.replace('.', '_')}"
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, lora)
    for one in (compiled, eager):
        one.add_lora(lora, name="style")
    with_lora = compiled.generate("a", **options).image
    assert (with_lora - eager.generate("a", **options).image).abs().max() < 1e-4
    assert (with_lora - drawn.image).abs().max() > 1e-2
    compiled.remove_lora("style")
    assert torch.equal(compiled.generate("a", **options).image, drawn.image)


def test_parts_of_a_compiled_block_are_seen_while_they_are_watched(compiled) -> None:
    compiled.generate("a", steps=1)
    with sd35.attention_maps(compiled.mmdit) as maps:
        compiled.generate("a", steps=1)
    assert maps.heatmap("a").isfinite().all()
    again = copy.deepcopy(compiled)  # of its own weights
    torch.nn.init.zeros_(again.mmdit.joint_blocks[0].x_block.mlp.fc2.weight)
    assert not torch.equal(again.generate("a", steps=1).image, compiled.generate("a", steps=1).image)


def test_no_compiler_is_told_before_weights_are_read(model_folder, monkeypatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(SettingsError, match="compile needs a C"):
        load(model_folder, compile=True)
