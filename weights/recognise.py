"""Which part of a model keys belong to, told by keys that no other has; or which other model's.

Trainers save a model inside others: `module.` before every key (DistributedDataParallel), `_orig_mod.`
anywhere in it (torch.compile), `model.`, `transformer.`, `net.`. Such wrappers are taken off first.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from .parts import PREFIXES, ignored

KNOWN: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("controlnet", re.compile(r"controlnet_blocks\.\d+\.")),
    ("mmdit", re.compile(r"joint_blocks\.\d+\.(x_block|context_block)\.")),
    ("mmdit", re.compile(r"transformer_blocks\.\d+\.(norm1_context|ff_context|attn\.norm_added_[qk])\.")),
    ("vae", re.compile(r"(encoder|decoder)\.(down|up|mid)(_blocks?)?\.")),
    ("clip", re.compile(r"text_model\.")),
    ("t5", re.compile(r"encoder\.block\.\d+\.layer\.|enc\.blk\.\d+\.")),
)
"""A part, and keys that decide for it: the first that matches any key counts. "clip" is one of the two."""

FOREIGN: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("an IP-Adapter", re.compile(r"(ip_adapter|image_proj)\.")),
    ("Stable Diffusion XL", re.compile(r"label_emb\.|add_embedding\.|conditioner\.embedders\.")),
    ("Stable Diffusion 1 or 2", re.compile(r"input_blocks\.|cond_stage_model\.|time_embedding\.linear_1\.")),
    ("HunyuanVideo", re.compile(r"txt_in\.individual_token_refiner\.")),
    ("FLUX", re.compile(r"double_blocks\.|single_blocks\.|single_transformer_blocks\.")),
    ("AuraFlow", re.compile(r"double_layers\.|single_layers\.|joint_transformer_blocks\.")),
    ("PixArt", re.compile(r"adaln_single\.")),
    ("Qwen-Image", re.compile(r"transformer_blocks\.\d+\.img_mod\.")),
    ("Wan", re.compile(r"blocks\.\d+\.self_attn\.norm_q\.")),
    ("the autoencoder of Stable Diffusion 1, 2 or XL", re.compile(r"(post_)?quant_conv\.")),
)
"""Other models, and keys that only they have."""

ADAPTER = re.compile(
    r"(.*[._])?(lora|lokr|loha|hada|lycoris|oft|boft|glora|dora)[._].*"
    r"|.*\.(alpha|diff|diff_b|magnitude)"
)
"""The keys of LoRA files and their relatives."""

INNER = re.compile(r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Wrappers that may stand anywhere in a key."""


def recognise(names: Iterable[str]) -> str | None:
    """Tell which part keys without a prefix belong to: a part, "clip" for one of the two, or None."""
    names = list(names)
    if foreign_model(names) is not None:
        return None
    return next((part for part, deciding in KNOWN if any(deciding.match(name) for name in names)), None)


def foreign_model(names: Iterable[str]) -> str | None:
    """Name the model that keys belong to where it is none of ours; None where nothing tells.

    An adapter is told by most of its keys, since a model may hold a few that training left behind.
    """
    names = [name for name in names if not ignored("", name)]
    if sum(ADAPTER.fullmatch(name) is not None for name in names) > len(names) / 2:
        return "a LoRA or another adapter"
    bare = [_without_official_prefix(name) for name in names]
    return next((model for model, only in FOREIGN if any(only.match(name) for name in bare)), None)


def unwrap(names: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Take off what trainers put around the keys of a model.

    Leading segments that all keys share are taken off one by one, until what
    is left is recognised.

    Returns:
        The key without wrappers to the key as it is, and the wrappers.
    """
    inner = dict.fromkeys(match[1] + "." for name in names for match in INNER.finditer(name))
    plain = [INNER.sub("", name) for name in names]
    first, taken = plain[0].split(".") if plain else [], 0
    common = 0
    while common < len(first) - 1:
        outer = ".".join(first[: common + 1]) + "."
        if not all(name.startswith(outer) for name in plain):
            break
        common += 1
    for count in range(common + 1):
        outer = "".join(f"{segment}." for segment in first[:count])
        rest = [name.removeprefix(outer) for name in plain]
        known = any(name.startswith(tuple(PREFIXES)) for name in rest)
        if known or recognise(rest) is not None or foreign_model(rest) is not None:
            taken = count
            break
    outer = "".join(f"{segment}." for segment in first[:taken])
    wrappers = (*((outer,) if outer else ()), *inner)
    return {name.removeprefix(outer): raw for name, raw in zip(plain, names, strict=True)}, wrappers


def _without_official_prefix(name: str) -> str:
    return name.removeprefix(next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""))


def named(names: Sequence[str]) -> str:
    """What keys that hold no part of ours are, in a few words."""
    model = foreign_model(names)
    return f"{len(names)} tensors of another model, the first being {names[0]}" if model is None else model


def described_strays(stray: Mapping[str, tuple[str, ...]]) -> str:
    """Files without any part of ours and what each is, in one line; nothing where there are none."""
    return "; ".join(f"{file} is {named(names)}" for file, names in stray.items())
