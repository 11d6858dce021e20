"""`--lora`, and pictures that carry what it takes to repeat them."""

import pytest
import torch
from safetensors.torch import save_file

from sd35 import SettingsError, load, read_settings


@pytest.fixture
def style(pipe, tmp_path):
    """A LoRA of the small model that all its pictures show."""
    rows, columns = pipe.mmdit.get_submodule("final_layer.linear").weight.shape
    stem, generator = "transformer.proj_out", torch.Generator().manual_seed(2)
    tensors = {
        f"{stem}.lora_A.weight": torch.randn(2, columns, generator=generator),
        f"{stem}.lora_B.weight": torch.randn(rows, 2, generator=generator),
    }
    path = tmp_path / "style.safetensors"
    save_file(tensors, path)
    return path


def test_a_picture_says_what_it_was_drawn_with_and_is_drawn_again(sd35, model_folder, style, tmp_path):
    pictures = [tmp_path / f"{number}.png" for number in range(4)]
    drawn = ("generate", "a red circle", "-m", model_folder, "--steps", "2")
    status, _, err = sd35(*drawn, "--lora", f"{style}:0.7", "-o", pictures[0])
    assert status == 0
    assert "LoRA style at scale 0.7: 2 keys" in err
    (lora,) = read_settings(pictures[0]).loras
    assert (lora.name, lora.scale, lora.source, len(lora.digest)) == ("style", 0.7, str(style), 64)
    assert sd35("generate", "--from-image", pictures[0], "-o", pictures[1])[0] == 0
    assert sd35("generate", "--from-image", pictures[0], "--lora", "none", "-o", pictures[2])[0] == 0
    assert sd35(*drawn, "-o", pictures[3])[0] == 0
    same = [path.read_bytes() == pictures[0].read_bytes() for path in pictures]
    assert same == [True, True, False, False]
    assert read_settings(pictures[2]).loras == ()
    pipe = load(model_folder, lora=(style, 0.7))
    assert torch.equal(
        pipe.run(read_settings(pictures[0])).latents, pipe.generate("a red circle", steps=2).latents
    )
    pipe.set_lora("style", 0.5)
    with pytest.raises(SettingsError, match=r"with the LoRA style at scale 0.7 .* not on this pipeline"):
        pipe.run(read_settings(pictures[0]))
    with pytest.raises(SettingsError, match=r"without the LoRA style at scale 0.5"):
        pipe.run(read_settings(pictures[3]))
    style.unlink()
    status, _, err = sd35("generate", "--from-image", pictures[0], "-o", tmp_path / "5.png")
    assert status == 2
    assert "drawn with the LoRA style at scale 0.7" in err
    assert err.count("\n") == 1


def test_inspect_tells_what_a_lora_is_and_by_its_status_whether_it_fits(sd35, style, tmp_path):
    status, out, err = sd35("inspect", style)
    assert (status, err) == (1, "")
    for row in ("fits    none of", "since   ", "names   transformer. + diffusers' names", "rank    2"):
        assert f"  {row}" in out
    layer = "transformer.transformer_blocks.0.attn.to_q"
    fitting = {f"{layer}.lora_A.weight": torch.ones(2, 2432), f"{layer}.lora_B.weight": torch.ones(2432, 2)}
    save_file(fitting, tmp_path / "large.safetensors")
    status, out, _ = sd35("inspect", tmp_path / "large.safetensors")
    assert status == 0
    assert "fits    sd3.5-large" in out
