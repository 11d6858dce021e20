"""What to fetch for a part that is missing, from the repository of the model that is there."""

from collections.abc import Mapping

from .component import Component

TEXT = {
    "clip_l": "text_encoders/clip_l.safetensors (or the folder text_encoder/)",
    "clip_g": "text_encoders/clip_g.safetensors (or the folder text_encoder_2/)",
    "t5": "text_encoders/t5xxl_fp16.safetensors, 9.8 GB, or t5xxl_fp8_e4m3fn.safetensors, 4.9 GB "
    "(or the folder text_encoder_3/)",
}
CONTROLNETS = (
    "sd3.5_large_controlnet_canny.safetensors, _depth or _blur, "
    "from stabilityai/stable-diffusion-3.5-controlnets"
)
TOKENIZER_FOLDERS = {
    "tokenizer": "the folder tokenizer/ (vocab.json and merges.txt)",
    "tokenizer_2": "the folder tokenizer_2/ (vocab.json and merges.txt)",
    "tokenizer_3": "the folder tokenizer_3/ (tokenizer.json or spiece.model)",
}
PUBLIC_VOCABULARIES = {
    "clip_l": "vocab.json and merges.txt from openai/clip-vit-large-patch14",
    "clip_g": "vocab.json and merges.txt from openai/clip-vit-large-patch14",
    "t5": "spiece.model from google/t5-v1_1-xxl",
}
"""Small files that hold the same vocabularies, from repositories without a licence to accept."""

MEDIUM = "sd3.5-medium"
FILES = {
    "sd3-medium": ("stabilityai/stable-diffusion-3-medium", "sd3_medium.safetensors"),
    MEDIUM: ("stabilityai/stable-diffusion-3.5-medium", "sd3.5_medium.safetensors"),
    "sd3.5-large": ("stabilityai/stable-diffusion-3.5-large", "sd3.5_large.safetensors"),
}
"""A released model to its repository and the file with its MM-DiT and autoencoder."""


def release_of(components: Mapping[str, Component]) -> str:
    """The released model, a key of `FILES`, that a source with these parts is most like."""
    if "mmdit" not in components:
        return MEDIUM
    shapes = components["mmdit"].shapes()
    if shapes.get("x_embedder.proj.weight", (0,))[0] == 2432:
        return "sd3.5-large"
    normed = any(name.endswith("x_block.attn.ln_q.weight") for name in shapes)
    return MEDIUM if normed else "sd3-medium"


def what_to_fetch(missing: str, components: Mapping[str, Component]) -> str:
    """Say what to fetch.

    Args:
        missing: a part, or a folder of `TOKENIZER_FOLDERS`.
        components: the parts that are there, which tell the model.
    """
    if missing == "controlnet":
        return CONTROLNETS
    repository, file = FILES[release_of(components)]
    if missing in TOKENIZER_FOLDERS:
        # The repository of SD3-medium has no tokenizers; that of its diffusers layout has.
        layout = "-diffusers" if repository.endswith("-3-medium") else ""
        return f"{TOKENIZER_FOLDERS[missing]} from {repository}{layout}"
    whole = {
        "mmdit": f"{file} (or the folder transformer/)",
        "vae": f"{file}, which holds it too (or the folder vae/)",
    }
    return f"{(whole | TEXT)[missing]} from {repository}"
