"""A module built for each official checkpoint has exactly its keys and shapes, in every layout."""

import json

import pytest
import torch

import weights

MODULES = [
    ("mmdit", "sd3_medium.safetensors", "model.diffusion_model."),
    ("mmdit", "sd3.5_medium.safetensors", "model.diffusion_model."),
    ("mmdit", "sd3.5_large.safetensors", "model.diffusion_model."),
    ("vae", "sd3.5_medium.safetensors", "first_stage_model."),
    ("clip", "text_encoders_clip_l.safetensors", ""),
    ("clip", "text_encoders_clip_g.safetensors", ""),
    ("t5", "diffusers_sd3.5-large_text_encoder_3", ""),
]
BUILD = {
    "mmdit": weights.build_mmdit,
    "vae": weights.build_vae,
    "clip": weights.build_clip,
    "t5": weights.build_t5,
    "controlnet": weights.build_controlnet,
}


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(("part", "name", "prefix"), MODULES)
def test_module_has_exactly_the_official_keys(shapes, part, name, prefix):
    module = BUILD[part](shapes(name))  # the whole file: other parts' keys are passed over
    assert shapes_of(module) == shapes(name, prefix)
    assert all(tensor.is_meta for tensor in module.state_dict().values())


@pytest.mark.parametrize(
    ("part", "diffusers", "official", "prefix"),
    [
        ("mmdit", "diffusers_sd3.5-medium_transformer", "sd3.5_medium.safetensors", "model.diffusion_model."),
        ("mmdit", "diffusers_sd3.5-large_transformer", "sd3.5_large.safetensors", "model.diffusion_model."),
        ("vae", "diffusers_sd3.5-large_vae", "sd3.5_large.safetensors", "first_stage_model."),
        ("clip", "diffusers_sd3.5-large_text_encoder", "text_encoders_clip_l.safetensors", ""),
        ("clip", "diffusers_sd3.5-large_text_encoder_2", "text_encoders_clip_g.safetensors", ""),
    ],
)
def test_diffusers_folders_build_the_same_modules(shapes, part, diffusers, official, prefix):
    assert shapes_of(BUILD[part](shapes(diffusers))) == shapes(official, prefix)


@pytest.mark.parametrize("name", ["t5xxl_fp16", "t5xxl_fp8_e4m3fn"])
def test_t5_files_name_their_token_table_twice(shapes, name):
    official = shapes(f"text_encoders_{name}.safetensors")
    assert official.pop("encoder.embed_tokens.weight") == official["shared.weight"]
    assert shapes_of(weights.build_t5(shapes(f"text_encoders_{name}.safetensors"))) == official


@pytest.mark.parametrize("kind", ["blur", "canny", "depth"])
def test_controlnets_leave_only_the_layer_that_is_never_run(shapes, kind):
    official = shapes(f"sd3.5_large_controlnet_{kind}.safetensors")
    unused = {"context_embedder.weight", "context_embedder.bias"}
    module = weights.build_controlnet(official)
    assert shapes_of(module) == {name: shape for name, shape in official.items() if name not in unused}


def test_clips_differ_in_their_activation(shapes):
    activations = [
        weights.build_clip(shapes(f"text_encoders_{name}.safetensors")).config.activation
        for name in ("clip_l", "clip_g")
    ]
    assert activations == ["quick_gelu", "gelu"]


def test_the_lists_say_what_the_full_manifests_say(manifest, shared_reference):
    for path in sorted((shared_reference / "manifests").glob("*.json")):
        tensors = json.loads(path.read_text()).get("tensors")
        if tensors is not None:
            full = {key: (tuple(shape), dtype) for key, (shape, dtype) in tensors.items()}
            assert manifest(path.name.removesuffix(".json")) == full, path.name
