"""The released models are named by their sizes, and large-turbo by its name."""

import json

import pytest

from weights.build import build_component
from weights.component import components_of
from weights.file import Header, TensorInfo
from weights.folder import Nowhere
from weights.unit import read_unit
from weights.variants import describe


class Listed(Nowhere):
    """A folder of one file, of which the header is known and nothing else."""

    def __init__(self, name: str, tensors) -> None:
        self.name = name
        self._header = Header(
            {key: TensorInfo(tuple(shape), dtype) for key, (shape, dtype) in tensors.items()}
        )

    def header(self, file: str) -> Header:
        return self._header


def variants(tensors, folder: str, file: str) -> dict[str, tuple[str, str]]:
    """Part to its variant, and to what decided."""
    components, stray = components_of(read_unit(Listed(folder, tensors), file))
    assert stray == []
    return {component.part: describe(component, build_component(component)) for component in components}


@pytest.mark.parametrize(
    ("keys", "file", "expected"),
    [
        ("sd3_medium.safetensors", "a.safetensors", {"mmdit": "sd3-medium", "vae": "sd3"}),
        ("sd3.5_medium.safetensors", "a.safetensors", {"mmdit": "sd3.5-medium", "vae": "sd3"}),
        ("sd3.5_large.safetensors", "a.safetensors", {"mmdit": "sd3.5-large", "vae": "sd3"}),
        ("diffusers_sd3.5-medium_transformer", "transformer/a.safetensors", {"mmdit": "sd3.5-medium"}),
        ("diffusers_sd3.5-large_transformer", "transformer/a.safetensors", {"mmdit": "sd3.5-large"}),
        ("diffusers_sd3.5-large_vae", "vae/a.safetensors", {"vae": "sd3"}),
        ("text_encoders_clip_l.safetensors", "a.safetensors", {"clip_l": "clip-l"}),
        ("text_encoders_clip_g.safetensors", "a.safetensors", {"clip_g": "clip-g"}),
        ("diffusers_sd3.5-large_text_encoder", "text_encoder/a.safetensors", {"clip_l": "clip-l"}),
        ("diffusers_sd3.5-large_text_encoder_2", "text_encoder_2/a.safetensors", {"clip_g": "clip-g"}),
        ("text_encoders_t5xxl_fp16.safetensors", "a.safetensors", {"t5": "t5-xxl"}),
        ("text_encoders_t5xxl_fp8_e4m3fn.safetensors", "a.safetensors", {"t5": "t5-xxl"}),
        (
            "sd3.5_large_controlnet_depth.safetensors",
            "a.safetensors",
            {"controlnet": "sd3.5-large-controlnet"},
        ),
    ],
)
def test_a_released_model_is_named_by_its_sizes(manifest, keys, file, expected):
    found = variants(manifest(keys), "owner/name", file)
    assert {part: variant for part, (variant, _) in found.items()} == expected


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("models", "sd3.5_large_turbo.safetensors"),
        ("stabilityai/stable-diffusion-3.5-large-turbo", "transformer/a.safetensors"),
    ],
)
def test_turbo_is_told_from_large_by_its_name(manifest, folder, file):
    tensors = manifest("sd3.5_large.safetensors")  # the keys, shapes and dtypes of both
    variant, decided = variants(tensors, folder, file)["mmdit"]
    assert variant == "sd3.5-large-turbo"
    assert decided.endswith("; the name says turbo")
    variant, decided = variants(tensors, "models", "a.safetensors")["mmdit"]
    assert variant == "sd3.5-large"
    assert decided.endswith("; no name says turbo, which has the same sizes")


def test_turbo_has_the_tensors_of_large(shared_reference):
    path = shared_reference / "manifests" / "sd3.5_large_turbo.safetensors.json"
    assert json.loads(path.read_text())["same_tensors_as"] == "sd3.5_large.safetensors.json"


def test_other_sizes_are_of_no_released_model(manifest):
    whole = manifest("sd3.5_medium.safetensors")
    fewer = {key: value for key, value in whole.items() if ".joint_blocks.23." not in key}
    variant, decided = variants(fewer, "models", "a.safetensors")["mmdit"]
    assert variant == "unknown"
    assert decided.endswith(": of no released model")
