"""What trainers call the layers that a LoRA changes: prefixes, suffixes and names, as tables.

A key is a prefix, a module's name and a suffix:

    lora_unet_          joint_blocks_0_x_block_attn_qkv    .lora_down.weight
    transformer.        transformer_blocks.0.attn.to_q     .lora_A.weight

The prefix tells the part of the model, and whether dots are spelled as "_". The name is official or that
of diffusers, in any dialect. The suffix tells what the tensor is. `keys.py` explains the notation of
the lines.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..keys import Layout, Line, Place, place_of
from ..layouts import MMDIT

PREFIXES: Mapping[str, str] = {
    "transformer.": "mmdit",  # diffusers, OneTrainer, SimpleTuner, ai-toolkit
    "lora_transformer_": "mmdit",  # OneTrainer until 2025
    "lora_unet_": "mmdit",  # sd-scripts, whatever the network is
    "lycoris_": "mmdit",
    "base_model.model.": "mmdit",  # a folder that PEFT wrote
    "diffusion_model.": "mmdit",  # ComfyUI
    "model.diffusion_model.": "mmdit",
    "text_encoder.": "clip_l",
    "lora_te1_": "clip_l",
    "text_encoders.clip_l.transformer.": "clip_l",
    "clip_l.": "clip_l",
    "text_encoder_2.": "clip_g",
    "lora_te2_": "clip_g",
    "text_encoders.clip_g.transformer.": "clip_g",
    "clip_g.": "clip_g",
    "text_encoder_3.": "t5",
    "lora_te3_": "t5",
    "text_encoders.t5xxl.transformer.": "t5",
    "t5.": "t5",
    "": "mmdit",  # OneTrainer's "original"
}
"""Prefix to part. One that ends in "_" spells the dots of the name as "_" too."""

SUFFIXES: Mapping[str, str] = {
    ".lora_A.weight": "down",
    ".lora_A.default.weight": "down",
    ".lora_down.weight": "down",
    ".lora.down.weight": "down",
    ".lora_linear_layer.down.weight": "down",
    "_lora.down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.default.weight": "up",
    ".lora_up.weight": "up",
    ".lora.up.weight": "up",
    ".lora_linear_layer.up.weight": "up",
    "_lora.up.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora_B.default.bias": "up_bias",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",  # LyCORIS, OneTrainer: the axis by its shape
    ".lora_magnitude_vector": "magnitude",  # PEFT: one a row
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".magnitude": "magnitude",  # ai-toolkit
    ".diff": "weight",
    ".diff_b": "bias",
    **{f".hada_{factor}": f"hada_{factor}" for factor in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{factor}": f"lokr_{factor}" for factor in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
"""Suffix to what the tensor is."""


def _modules(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Lines for tensors as lines for the modules that hold them."""
    pairs = [
        (Line(line.ours.removesuffix(leaf), line.theirs.removesuffix(leaf), line.change))
        for line in lines
        for leaf in (".*", ".weight")
        if line.ours.endswith(leaf)
    ]
    return tuple(pairs)


_STACK = MMDIT.our_stack
_QKV = (
    "joint_blocks.{i}.x_block.attn.qkv",
    "joint_blocks.{i}.x_block.attn2.qkv",
    "joint_blocks.{i}.context_block.attn.qkv",
)
DIFFUSERS = Layout(_modules(MMDIT.lines), _STACK, MMDIT.their_stack)
OFFICIAL = Layout(tuple(Line(line.ours, line.ours) for line in DIFFUSERS.lines), _STACK, _STACK)
NUMBERED = Layout(tuple(Line(name, f"{name}.0|1|2") for name in _QKV), _STACK, _STACK)
"""OneTrainer's names of 2025 (OMI): official ones, with q, k and v apart."""
PROCESSOR = Layout(
    (
        Line("joint_blocks.{i}.x_block.attn.qkv", "transformer_blocks.{i}.attn.processor.to_q|k|v"),
        Line("joint_blocks.{i}.x_block.attn.proj", "transformer_blocks.{i}.attn.processor.to_out"),
        Line(
            "joint_blocks.{i}.context_block.attn.qkv", "transformer_blocks.{i}.attn.processor.add_q|k|v_proj"
        ),
        Line("joint_blocks.{i}.context_block.attn.proj", "transformer_blocks.{i}.attn.processor.to_add_out"),
    ),
    _STACK,
    MMDIT.their_stack,
)
"""diffusers' names of before PEFT, when a LoRA was an attention processor."""


def _same(stack: str, *names: str) -> Layout:
    """The layout of an encoder, which has the same names everywhere."""
    return Layout(tuple(Line(name, name) for name in names), stack, stack)


_PROJECTIONS = tuple(f"self_attn.{each}_proj" for each in ("q", "k", "v", "out"))
_T5_LINEARS = (
    *(f"0.SelfAttention.{each}" for each in ("q", "k", "v", "o", "relative_attention_bias")),
    *(f"1.DenseReluDense.{each}" for each in ("wi_0", "wi_1", "wo")),
)
_CLIP_LAYER, _T5_LAYER = "text_model.encoder.layers.{i}", "encoder.block.{i}.layer"
CLIP = _same(
    "text_model.encoder.layers.",
    "text_model.embeddings.token_embedding",
    "text_model.embeddings.position_embedding",
    *(
        f"{_CLIP_LAYER}.{name}"
        for name in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", *_PROJECTIONS)
    ),
    "text_model.final_layer_norm",
    "text_projection",
)
T5 = _same(
    "encoder.block.",
    "shared",
    *(f"{_T5_LAYER}.{name}" for name in ("0.layer_norm", "1.layer_norm", *_T5_LINEARS)),
    "encoder.final_layer_norm",
)

LAYOUTS: Mapping[str, Mapping[str, Layout]] = {
    "mmdit": {
        "official names": OFFICIAL,
        "diffusers' names": DIFFUSERS,
        "numbered names": NUMBERED,
        "processor names": PROCESSOR,
    },
    "clip_l": {"official names": CLIP},
    "clip_g": {"official names": CLIP},
    "t5": {"official names": T5},
}
"""Part to the tables that its names may come from."""


def flat(layout: Layout) -> Layout:
    """The same table with the dots of their names spelled as "_", as where a name is a module's own name."""
    lines = tuple(Line(line.ours, "_".join(line.theirs.split(".")), line.change) for line in layout.lines)
    return Layout(lines, layout.our_stack, "_".join(layout.their_stack.split(".")))


_SPELLED = {
    part: {False: dict(layouts), True: {name: flat(layout) for name, layout in layouts.items()}}
    for part, layouts in LAYOUTS.items()
}


@dataclass(frozen=True)
class Key:
    """One key of a file, read."""

    part: str
    place: Place  # the module, and which rows of it
    role: str  # a value of SUFFIXES
    prefix: str
    layout: str  # a key of LAYOUTS[part]
    suffix: str


def suffix_of(key: str) -> str:
    """The suffix that a key ends with, the longest of SUFFIXES; empty where it has none of them."""
    return max((suffix for suffix in SUFFIXES if key.endswith(suffix)), key=len, default="")


def read_key(key: str, depths: Mapping[str, int]) -> Key | None:
    """Read one key of a file.

    Args:
        key: as the file has it.
        depths: part to its number of layers, since the last layer has an order of its own.

    Returns:
        What it says, or None where no line of the tables knows it.
    """
    suffix = suffix_of(key)
    if not suffix:
        return None
    for prefix, part in PREFIXES.items():
        if not key.startswith(prefix):
            continue
        name = key[len(prefix) : -len(suffix)]
        for layout, table in _SPELLED[part][prefix.endswith("_")].items():
            place = place_of(name, table, last=depths.get(part, 0) - 1)
            if place is not None:
                return Key(part, place, SUFFIXES[suffix], prefix, layout, suffix)
    return None


FOREIGN: Mapping[str, re.Pattern[str]] = {
    "a LoRA of FLUX.1": re.compile(
        r".*single_transformer_blocks|lora_unet_(double|single)_blocks_|(diffusion_model\.)?(double|single)_blocks\."
    ),
    "a LoRA of Stable Diffusion XL or 1.5": re.compile(
        r"unet\.|lora_unet_(down|up|mid)_block|lora_unet_(input|output|middle)_block|lora_te_"
    ),
    "a LoRA of a ControlNet": re.compile(r"controlnet\.|lora_controlnet_"),
    "an OFT or BOFT adapter": re.compile(r".*\.(oft_blocks|oft_diag|oft_R\.weight|boft_\w+)"),
    "a GLoRA adapter": re.compile(r".*\.(a1|a2|b1|b2|bm1|bm2)\.weight"),
    "an IA3 adapter": re.compile(r".*\.(ia3_l(\.weight)?|on_input)"),
    "a LoCon with a Tucker core": re.compile(r".*\.lora_mid\.weight"),
    "an IP-Adapter": re.compile(r"(image_proj|ip_adapter)\."),
    "a set of replaced weights": re.compile(
        r".*\.(set_weight|reshape_weight|w_norm|b_norm)|.*pos_embed\.diff"
    ),
}
"""What else goes by the name of LoRA, by its keys."""


def foreign(keys: Iterable[str]) -> str | None:
    """Say what a file is whose keys no table knows, where a key of its tells."""
    keys = list(keys)
    return next((what for what, sign in FOREIGN.items() if any(sign.match(key) for key in keys)), None)
