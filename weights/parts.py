"""The six parts a model is made of, what stands before their keys, and which keys no part uses.

A part goes by one name everywhere: mmdit, vae, clip_l, clip_g, t5, controlnet.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from .keys import Layout
from .layouts import CONTROLNET, JOINT_CONTROLNET, MMDIT, T5_LLAMA, VAE

PARTS: Mapping[str, str] = {
    "mmdit": "MM-DiT",
    "vae": "autoencoder",
    "clip_l": "text encoder CLIP-L",
    "clip_g": "text encoder CLIP-G",
    "t5": "text encoder T5",
    "controlnet": "ControlNet",
}
"""Every part and what messages call it."""

PREFIXES: Mapping[str, str] = {
    "model.diffusion_model.": "mmdit",
    "first_stage_model.": "vae",
    "text_encoders.clip_l.transformer.": "clip_l",
    "text_encoders.clip_g.transformer.": "clip_g",
    "text_encoders.t5xxl.transformer.": "t5",
}
"""What stands before a part's keys in an official file that holds several parts."""

OTHER_LAYOUTS: Mapping[str, tuple[str, re.Pattern[str], Layout]] = {
    "mmdit": ("diffusers", re.compile(r"transformer_blocks\."), MMDIT),
    "vae": ("diffusers", re.compile(r"\w+\.(down_blocks|up_blocks|mid_block|conv_norm_out)\."), VAE),
    "controlnet": ("diffusers", re.compile(r"transformer_blocks\.\d+\.(attn\.to_|ff\.|norm1\.)"), CONTROLNET),
    "joint_controlnet": ("diffusers", re.compile(r"transformer_blocks\."), JOINT_CONTROLNET),
    "t5": ("llama.cpp", re.compile(r"enc\.blk\."), T5_LLAMA),
}
"""The parts that others store under other keys: who, what tells the layout, and the table."""

IGNORED: Mapping[str, re.Pattern[str]] = {
    # What training left behind in any file, and what is computed rather than stored.
    "": re.compile(r"loss\..*|(.*\.)?(logit_scale|position_ids|model_sampling\.sigmas)"),
    # The official ControlNets hold this layer and never run it.
    "controlnet": re.compile(r"context_embedder\..*"),
    # SD3 does not project CLIP-L, whatever a file holds.
    "clip_l": re.compile(r"text_projection\.weight"),
    # A whole T5 in llama.cpp's layout has a decoder too.
    "t5": re.compile(r"dec\..*|output\.weight"),
}
"""Keys that are left out, by part; under "" those of any part."""


JOINT = re.compile(r"\.(add_[qkv]_proj|norm1_context|ff_context|context_block)\.")
"""Keys of blocks with a text stream: of an MM-DiT, and of ControlNets that are made of its blocks."""


def kind_of(part: str, names: Iterable[str]) -> str:
    """The part, or "joint_controlnet" for a ControlNet of joint blocks: its keys are other ones."""
    is_joint = part == "controlnet" and any(JOINT.search(name) for name in names)
    return "joint_controlnet" if is_joint else part


def ignored(part: str, name: str) -> bool:
    """Whether a key (without prefix) is known to be unused by a part."""
    return any(IGNORED[key].fullmatch(name) is not None for key in ("", part) if key in IGNORED)


def split_prefixes(names: Iterable[str]) -> dict[str, list[str]]:
    """Sort the keys of a file by official prefix; what has none comes under "".

    Keys that no part uses (`IGNORED`) are left out.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        if prefix or not ignored("", name):
            groups.setdefault(prefix, []).append(name)
    return groups


def which_clip(
    hint: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, str]:
    """Decide between CLIP-L and CLIP-G, which have the same keys and other activations.

    The first of these that says something decides: the activation in config.json (quick_gelu is
    CLIP-L's), the file's or folder's name, the width (768 or 1280), and last whether there is a
    projection, which only CLIP-G's file holds.

    Args:
        hint: the file's path, of which the last two parts are looked at.
        config: config.json beside the file; may be empty.
        shapes: key without prefix to shape.

    Returns:
        "clip_l" or "clip_g", and what decided it.
    """
    activations = {"quick_gelu": "clip_l", "gelu": "clip_g"}
    if config.get("hidden_act") in activations:
        return activations[config["hidden_act"]], f"hidden_act {config['hidden_act']} in config.json"
    for word in reversed(PurePosixPath(hint.lower()).parts[-2:]):
        if "clip_g" in word or word == "text_encoder_2":
            return "clip_g", f"the name {word}"
        if "clip_l" in word or word == "text_encoder":
            return "clip_l", f"the name {word}"
    width = shapes.get("text_model.final_layer_norm.weight", (0,))[0]
    if width in (768, 1280):
        return "clip_l" if width == 768 else "clip_g", f"the width {width}"
    projected = "text_projection.weight" in shapes
    return ("clip_g", "its text_projection") if projected else ("clip_l", "having no text_projection")
