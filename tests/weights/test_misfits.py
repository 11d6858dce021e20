"""What does not fit a module is told in one table, by the names of the file."""

import json

import pytest
import torch

import weights
from weights import FitError

STEM = r"model\.diffusion_model\."
MISFITS = {
    "missing": lambda state: state.pop("joint_blocks.1.x_block.attn.proj.bias"),
    "left over": lambda state: state.update({"joint_blocks.1.x_block.lora_A": torch.ones(2, 3)}),
    "wrong shape": lambda state: state.update({"final_layer.linear.bias": torch.ones(7)}),
    "wrong dtype": lambda state: state.update({"final_layer.linear.bias": torch.ones(64, dtype=torch.int8)}),
}
ROWS = {
    "missing": rf"missing +{STEM}joint_blocks\.1\.x_block\.attn\.proj\.bias +expected \[128]",
    "left over": rf"left over +{STEM}joint_blocks\.1\.x_block\.lora_A +has F32 \[2, 3\]",
    "wrong shape": rf"wrong shape +{STEM}final_layer\.linear\.bias +has \[7\], expected \[64",
    "wrong dtype": rf"wrong dtype +{STEM}final_layer\.linear\.bias +has I8, expected F64 or",
}


@pytest.mark.parametrize("kind", MISFITS)
def test_misfit_is_one_row(tmp_path, writers, parts, kind):
    state = dict(parts["mmdit"])
    MISFITS[kind](state)
    path = writers["write"](tmp_path / "m.safetensors", writers["prefixed"]({"mmdit": state}, "mmdit"))
    with pytest.raises(FitError, match=ROWS[kind]) as error:
        weights.load_mmdit(path)
    assert f"(1 {kind})" in str(error.value)


def test_all_misfits_come_in_one_table(tmp_path, writers, parts):
    state = dict(parts["mmdit"])
    for kind in ("missing", "left over", "wrong shape"):
        MISFITS[kind](state)
    path = writers["write"](tmp_path / "m.safetensors", state)
    with pytest.raises(FitError, match="1 missing, 1 left over, 1 wrong shape") as error:
        weights.load_mmdit(path)
    assert len(str(error.value).splitlines()) == 4


def test_diffusers_misfit_speaks_diffusers_names(tmp_path, writers, parts):
    state = writers["to_diffusers"]("mmdit", parts["mmdit"])
    del state["transformer_blocks.0.attn.to_k.bias"]
    path = writers["write"](tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", state)
    with pytest.raises(FitError, match=r"missing .*attn\.to_q\.bias \| .*attn\.to_k\.bias \| .*to_v\.bias"):
        weights.load_mmdit(path)


def test_keys_of_no_part_are_left_over(tmp_path, writers, parts):
    state = writers["prefixed"](parts, "mmdit", "vae") | {"model_ema.decay": torch.ones(1)}
    path = writers["write"](tmp_path / "m.safetensors", state)
    with pytest.raises(FitError, match=r"left over +model_ema\.decay"):
        weights.load_vae(path)


def test_a_tensor_that_decides_a_size_is_missed_by_name(tmp_path, writers, parts):
    state = {name: tensor for name, tensor in parts["mmdit"].items() if name != "x_embedder.proj.weight"}
    with pytest.raises(FitError, match=r"no whole MM-DiT.*x_embedder\.proj\.weight"):
        weights.load_mmdit(writers["write"](tmp_path / "m.safetensors", state))


UNBUILDABLE = {
    "mmdit": ("x_embedder.proj.weight", (32, 16, 2, 2), "a width of 32 does not divide into heads of 64"),
    "controlnet": ("pos_embed_input.proj.weight", (32, 16, 2, 2), "a width of 32 does not divide"),
    "vae": ("encoder.down.0.block.0.conv1.weight", (), "conv1.weight .four-dimensional. is not among them"),
    "t5": (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        (32, 0),
        "a q of width 64 does not divide into 0 heads",
    ),
}


@pytest.mark.parametrize("part", UNBUILDABLE)
def test_sizes_that_make_no_module_are_a_misfit(tmp_path, writers, parts, part):
    name, shape, message = UNBUILDABLE[part]
    path = writers["write"](tmp_path / f"{part}.safetensors", parts[part] | {name: torch.ones(shape)})
    with pytest.raises(FitError, match=f"holds no whole .*{message}"):
        getattr(weights, f"load_{part}")(path)


@pytest.mark.parametrize("heads", [0, -2, 3, "2", 2.5])
def test_heads_that_a_config_cannot_mean_are_a_misfit(tmp_path, writers, parts, heads):
    path = writers["write"](tmp_path / "clip_g.safetensors", parts["clip_g"])
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": heads}))
    with pytest.raises(FitError, match=f"a width of 128 does not divide into {heads!r} heads"):
        weights.load_clip(path)
