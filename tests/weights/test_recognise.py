"""Keys are told by those that decide: other models are named, adapters are no models, wrappers come off."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import weights
from mmdit import JointControlNet, JointControlNetConfig
from weights import FitError, MissingComponent, SourceError, resolve
from weights.keys import to_theirs
from weights.layouts import JOINT_CONTROLNET
from weights.recognise import foreign_model, recognise, unwrap

ADAPTERS = Path(__file__).parents[2].parent / "shared" / "reference" / "adapters" / "lora"
PREFIX = "model.diffusion_model."
OTHERS = {
    "Stable Diffusion XL": [
        f"{PREFIX}input_blocks.0.0.weight",
        f"{PREFIX}label_emb.0.0.weight",
        "first_stage_model.decoder.mid.block_1.conv1.weight",
        "first_stage_model.quant_conv.weight",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
    ],
    "Stable Diffusion 1 or 2": [
        f"{PREFIX}input_blocks.0.0.weight",
        f"{PREFIX}middle_block.0.in_layers.0.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ],
    "FLUX": [f"{PREFIX}double_blocks.0.img_attn.qkv.weight", f"{PREFIX}single_blocks.0.linear1.weight"],
    "AuraFlow": [
        "joint_transformer_blocks.0.attn.to_q.weight",
        "single_transformer_block.0.attn.to_q.weight",
    ],
    "PixArt": ["transformer_blocks.0.attn1.to_q.weight", "adaln_single.linear.weight"],
    "Qwen-Image": ["transformer_blocks.0.attn.add_q_proj.weight", "transformer_blocks.0.img_mod.1.weight"],
    "Wan": ["blocks.0.self_attn.norm_q.weight", "patch_embedding.weight"],
    "the autoencoder of Stable Diffusion 1, 2 or XL": [
        "decoder.mid.block_1.conv1.weight",
        "post_quant_conv.weight",
    ],
}
DIFFUSERS_FLUX = [
    "transformer_blocks.0.norm1_context.linear.weight",
    "transformer_blocks.0.attn.add_q_proj.weight",
    "single_transformer_blocks.0.attn.to_q.weight",
]


@pytest.mark.parametrize(("model", "names"), [*OTHERS.items(), ("FLUX", DIFFUSERS_FLUX)])
def test_another_model_is_named_and_is_no_part(tmp_path, writers, model, names):
    path = writers["write"](tmp_path / "other.safetensors", {name: torch.ones(2, 2) for name in names})
    with pytest.raises(SourceError, match=f"holds no part of a Stable Diffusion 3 model.* is {model}"):
        weights.load_mmdit(path)
    wrapped = {f"module.{name}": torch.ones(2, 2) for name in names}
    assert foreign_model(unwrap(list(wrapped))[0]) == model


@pytest.mark.parametrize(
    "names",
    [
        ["transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "transformer.proj_out.lora_B.weight"],
        ["lora_unet_joint_blocks_0_x_block_mlp_fc1.alpha", "lora_te1_text_model_x.lora_up.weight"],
        [f"{PREFIX}joint_blocks.0.x_block.mlp.fc1.lora_up.weight", f"{PREFIX}final_layer.linear.diff_b"],
        ["lycoris_transformer_blocks_0_attn_to_q.lokr_w1", "lycoris_proj_out.hada_w1_a"],
        ["transformer_blocks.0.attn.processor.to_k_lora.down.weight"],
        ["joint_blocks.0.x_block.attn.qkv.alpha", "joint_blocks.0.x_block.attn.qkv.lora_A.weight"],
    ],
)
def test_a_lora_beside_the_model_does_not_displace_it(tmp_path, writers, parts, names):
    writers["write"](tmp_path / "model.safetensors", writers["prefixed"](parts, "mmdit", "vae"))
    writers["write"](tmp_path / "a_lora.safetensors", {name: torch.ones(2, 2) for name in names})
    found = resolve(tmp_path)
    assert found.components["mmdit"].files == ["model.safetensors"]
    with pytest.raises(MissingComponent, match=r"a_lora\.safetensors is a LoRA or another adapter"):
        found.component("t5")
    with pytest.raises(SourceError, match=r"a_lora\.safetensors is a LoRA or another adapter"):
        weights.load_mmdit(tmp_path / "a_lora.safetensors")


@pytest.mark.skipif(not ADAPTERS.is_dir(), reason="needs ../shared/reference/adapters")
def test_the_adapters_of_every_trainer_are_told() -> None:
    for path in ADAPTERS.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
        assert recognise(unwrap(names)[0]) is None, path.name
        assert foreign_model(names) == "a LoRA or another adapter", path.name


WRAPPERS = {
    "module.": "module.{}",
    "_orig_mod.": "_orig_mod.{}",
    "model.": "model.{}",
    "state_dict.module.": "state_dict.module.{}",
    "transformer.": "transformer.{}",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("part", ["mmdit", "vae", "clip_l", "t5", "controlnet"])
def test_wrappers_of_trainers_come_off_and_are_told(tmp_path, writers, parts, wrapper, part):
    state = {WRAPPERS[wrapper].format(name): tensor for name, tensor in parts[part].items()}
    path = writers["write"](tmp_path / f"{part}.safetensors", state)
    component = resolve(path).component(part)
    loaded = component.tensors()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in parts[part].items() if name in loaded)
    assert loaded.keys() >= parts[part].keys() - {"text_projection.weight"}
    assert f"its keys are wrapped in {wrapper}" in str(weights.inspect(path))


def test_wrappers_around_official_prefixes_and_inside_keys(tmp_path, writers, parts):
    state = writers["prefixed"](parts, "mmdit", "vae")
    around = {f"module.{name}": tensor for name, tensor in state.items()}
    found = resolve(writers["write"](tmp_path / "around.safetensors", around))
    assert set(found.components) == {"mmdit", "vae"}
    block = "joint_blocks.1."
    inside = {name.replace(block, f"{block}_orig_mod."): tensor for name, tensor in parts["mmdit"].items()}
    model = weights.load_mmdit(writers["write"](tmp_path / "inside.safetensors", inside))
    assert torch.equal(
        model.joint_blocks[1].x_block.mlp.fc1.weight, parts["mmdit"][f"{block}x_block.mlp.fc1.weight"]
    )
    assert weights.build_mmdit(inside).config == model.config


def test_a_controlnet_with_a_text_stream_is_one_of_joint_blocks(tmp_path, writers):
    """Of an MM-DiT's keys in diffusers' layout, and two of its own; a part that is missing is named."""
    config = JointControlNetConfig(
        dim=64, depth=2, num_heads=1, pos_embed_size=4, context_dim=32, pooled_dim=24, control_channels=17
    )
    net = JointControlNet(config)
    torch.nn.init.normal_(net.controlnet_blocks[1].weight)
    recipes, unknown = to_theirs(net.state_dict(), JOINT_CONTROLNET)
    assert unknown == []
    state = {}
    for name, recipe in recipes.items():
        thirds = net.state_dict()[name].chunk(len(recipe.sources))
        state |= {key: one.contiguous() for key, one in zip(recipe.sources, thirds, strict=True)}
    path = writers["write"](tmp_path / "c.safetensors", state)
    loaded = weights.load_controlnet(path)
    assert loaded.config == config
    assert all(torch.equal(loaded.state_dict()[name], one) for name, one in net.state_dict().items())
    assert weights.inspect(path).components["controlnet"].layout == "diffusers"
    del state["context_embedder.weight"]
    with pytest.raises(FitError, match=r"context_embedder\.weight"):
        weights.load_controlnet(writers["write"](tmp_path / "d.safetensors", state))
