"""Which layers a LoRA is trained on: patterns over module paths, and the sets that others use by name."""

from collections.abc import Mapping, Sequence

from torch import nn

from ..errors import SettingsError
from ..taps.match import matches, near

TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("joint_blocks.*.*_block.attn.qkv", "joint_blocks.*.*_block.attn.proj"),
    "attentions": ("joint_blocks.*.*_block.attn*.qkv", "joint_blocks.*.*_block.attn*.proj"),
    "blocks": ("joint_blocks.*.*_block.**",),
    "image": ("joint_blocks.*.x_block.attn*.*", "joint_blocks.*.x_block.mlp.*"),
}
"""attention: diffusers' default, without the second attention of dual blocks; attentions: with it; blocks:
every linear layer of the joint blocks, sd-scripts' default; image: attention and MLP of the image tokens."""
TEXT_TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("text_model.encoder.layers.*.self_attn.*_proj",),
    "blocks": ("text_model.encoder.layers.**",),
}
"""Of CLIP: attention is diffusers' default, blocks sd-scripts'."""


def target_paths(
    module: nn.Module, patterns: Sequence[str], sets: Mapping[str, tuple[str, ...]] = TARGETS
) -> list[str]:
    """The linear layers of a module that patterns choose.

    Args:
        module: an MM-DiT or a CLIP.
        patterns: names in `sets`, or globs over module paths: `*` is any part of one segment, `**` anything.
        sets: patterns by name.

    Raises:
        SettingsError: a pattern chooses no linear layer; the message names near matches.
    """
    layers = [path for path, one in module.named_modules() if isinstance(one, nn.Linear)]
    chosen: set[str] = set()
    for pattern in patterns:
        globs = sets.get(pattern, (pattern,))
        found = {path for path in layers if any(matches(glob, path) for glob in globs)}
        if not found:
            raise SettingsError(f"the target {pattern!r} matches no linear layer{near(pattern, layers)}")
        chosen |= found
    return [path for path in layers if path in chosen]
