"""The tables carry the official keys to those of the diffusers folders and back, one to one."""

import pytest
import torch

from weights.errors import FitError
from weights.keys import Recipe, to_ours, to_theirs
from weights.layouts import CONTROLNET, MMDIT, VAE

PAIRS = [
    ("sd3.5_medium.safetensors", "model.diffusion_model.", "diffusers_sd3.5-medium_transformer", MMDIT),
    ("sd3.5_large.safetensors", "model.diffusion_model.", "diffusers_sd3.5-large_transformer", MMDIT),
    ("sd3.5_medium.safetensors", "first_stage_model.", "diffusers_sd3.5-medium_vae", VAE),
    ("sd3.5_large.safetensors", "first_stage_model.", "diffusers_sd3.5-large_vae", VAE),
]


@pytest.mark.parametrize(("official", "prefix", "diffusers", "layout"), PAIRS)
def test_table_is_a_bijection_onto_the_manifests(shapes, official, prefix, diffusers, layout):
    ours, theirs = shapes(official, prefix), shapes(diffusers)
    there, unknown_there = to_theirs(ours, layout)
    back, unknown_back = to_ours(theirs, layout)
    assert unknown_there == []
    assert unknown_back == []
    assert there == back
    sources = [name for recipe in back.values() for name in recipe.sources]
    assert sorted(sources) == sorted(theirs), "every key of theirs is used exactly once"
    assert {name: recipe.shape(theirs) for name, recipe in back.items()} == ours


def test_sd3_medium_survives_the_way_there_and_back(shapes):
    ours = shapes("sd3_medium.safetensors", "model.diffusion_model.")
    there, unknown = to_theirs(ours, MMDIT)
    assert unknown == []
    assert "transformer_blocks.0.attn.norm_q.weight" not in {s for r in there.values() for s in r.sources}
    theirs = [name for recipe in there.values() for name in recipe.sources]
    assert len(set(theirs)) == len(theirs)
    assert to_ours(theirs, MMDIT) == (there, [])


def test_controlnet_table_covers_the_official_files(shapes):
    ours = shapes("sd3.5_large_controlnet_canny.safetensors")
    there, unknown = to_theirs(ours, CONTROLNET)
    assert sorted(unknown) == ["context_embedder.bias", "context_embedder.weight", "control_type"]
    # Exactly the keys that diffusers' own conversion writes for the 19 blocks of these files.
    theirs = {name for recipe in there.values() for name in recipe.sources}
    per_block = [
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "norm1.linear",
    ]
    embed = [f"time_text_embed.{kind}_embedder.linear_{n}" for kind in ("timestep", "text") for n in (1, 2)]
    modules = [f"transformer_blocks.{i}.{name}" for i in range(19) for name in per_block]
    modules += [f"controlnet_blocks.{i}" for i in range(19)] + embed + ["pos_embed_input.proj"]
    assert theirs == {f"{name}.{leaf}" for name in modules for leaf in ("weight", "bias")}
    assert to_ours(theirs, CONTROLNET)[0] == there


def test_only_pre_only_vectors_are_swapped(shapes):
    recipes, _ = to_ours(shapes("diffusers_sd3.5-medium_transformer"), MMDIT)
    swapped = {name for name, recipe in recipes.items() if recipe.change == "swap"}
    modules = ("joint_blocks.23.context_block.adaLN_modulation.1", "final_layer.adaLN_modulation.1")
    assert swapped == {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}


def test_the_decoder_is_numbered_from_the_other_end():
    recipes, _ = to_ours([f"decoder.up_blocks.{i}.resnets.0.conv1.weight" for i in range(4)], VAE)
    assert recipes["decoder.up.3.block.0.conv1.weight"].sources == (
        "decoder.up_blocks.0.resnets.0.conv1.weight",
    )
    assert recipes["decoder.up.0.block.0.conv1.weight"].sources == (
        "decoder.up_blocks.3.resnets.0.conv1.weight",
    )


def test_values_are_joined_in_the_order_q_k_v_swapped_and_folded():
    tensors = {name: torch.full((2, 3), float(index)) for index, name in enumerate("kqv")}
    joined = Recipe(("q", "k", "v")).tensor(tensors.__getitem__)
    assert joined[:, 0].tolist() == [1, 1, 0, 0, 2, 2]
    halves = {"scale_shift": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    assert Recipe(("scale_shift",), "swap").tensor(halves.__getitem__).tolist() == [3, 4, 1, 2]
    linear = {"w": torch.ones(4, 4), "b": torch.ones(4)}
    assert Recipe(("w",), "conv").tensor(linear.__getitem__).shape == (4, 4, 1, 1)
    assert Recipe(("b",), "conv").tensor(linear.__getitem__).shape == (4,)
    assert Recipe(("w",)).tensor(linear.__getitem__) is linear["w"]


def test_names_no_line_fits_are_told():
    recipes, unknown = to_ours(
        ["transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.lora", "x"], MMDIT
    )
    assert recipes == {}
    assert sorted(unknown) == ["transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.lora", "x"]


def test_q_k_and_v_of_different_widths_are_refused():
    with pytest.raises(FitError, match=r"a \[2, 3\], b \[2, 4\]"):
        Recipe(("a", "b", "a")).shape({"a": (2, 3), "b": (2, 4)})
