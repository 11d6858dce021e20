"""`sd35 quantise`."""

import re


def test_a_model_is_written_in_8_bits_and_draws(sd35, model_folder, tmp_path) -> None:
    few = tmp_path / "few.safetensors"
    status, out, err = sd35("quantise", model_folder, "-o", few)
    assert (status, err) == (0, "")
    assert re.search(r"joint_blocks\.1\.x_block\.attn\.qkv +12,288 +\d\.\d{3}e-\d\d\n", out)
    assert out.endswith(f"{few}\n")
    others = [
        option for name in ("--text-encoders", "--vae", "--tokenizers") for option in (name, model_folder)
    ]
    drawn = ("generate", "a", "--steps", "1", "-m", few, *others, "-o", tmp_path / "a.png")
    assert sd35(*drawn)[0] == 0
    status, out, err = sd35("quantise", few, "-o", tmp_path / "b.safetensors")
    assert status == 2
    assert "in few bits already" in err
    assert sd35("quantise", model_folder, "-o", few)[0] == 2
