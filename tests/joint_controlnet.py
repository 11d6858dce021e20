"""A ControlNet of the joint kind, which SD3 alone had: built of a transformer's own modules."""

import re
from collections.abc import Mapping
from copy import deepcopy

from torch import Tensor, nn

from mmdit.embed import PatchEmbed

FEED = {"ff.net.0.proj": "mlp.fc1", "ff.net.2": "mlp.fc2"}
JOINT = {
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "pos_embed.": "x_embedder.",
    "transformer_blocks": "joint_blocks",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_added_": "context_block.attn.ln_",
    "attn.norm_": "x_block.attn.ln_",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "norm1.linear": "x_block.adaLN_modulation.1",
    **{theirs.replace("ff", "ff_context"): f"context_block.{ours}" for theirs, ours in FEED.items()},
    **{theirs: f"x_block.{ours}" for theirs, ours in FEED.items()},
}
"""diffusers' names to those here; q, k and v are parts of `qkv`."""
QKV = re.compile(r"(.*)attn\.(to|add)_([qkv])(?:_proj)?\.(\w+)")


class JointControlNet(nn.Module):
    """A transformer's embeddings and first blocks, which see a control picture too; gives residuals."""

    def __init__(self, base, depth: int) -> None:
        super().__init__()
        self.base, config = deepcopy(base).requires_grad_(True), base.config
        self.base.joint_blocks, self.base.final_layer = self.base.joint_blocks[:depth], nn.Identity()
        self.pos_embed_input = PatchEmbed(config.channels, config.dim, config.patch_size)
        self.controlnet_blocks = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in range(depth))

    def forward(self, _, latents, sigma, context, pooled, control):
        net = self.base
        x = net.embed_latents(latents) + self.pos_embed_input(control)
        c, stream = net.t_embedder(sigma) + net.y_embedder(pooled), net.context_embedder(context)
        residuals = []
        for block, out in zip(net.joint_blocks, self.controlnet_blocks, strict=True):
            x, stream = block(x, stream, c)
            residuals.append(out(x))
        return residuals


def begun(base, depth: int) -> JointControlNet:
    """The net that does nothing yet: what it reads control with, and its outputs, are zero."""
    net = JointControlNet(base, depth)
    for part in (net.pos_embed_input, net.controlnet_blocks):
        for parameter in part.parameters():
            nn.init.zeros_(parameter)
    return net.to(base.dtype)


def part_of(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor, or the part of it, that diffusers calls so."""
    part = QKV.fullmatch(name)
    if part is not None:
        block, way, letter, leaf = part.groups()
        stream = {"to": "x_block", "add": "context_block"}[way]
        name = f"{block}{stream}.attn.qkv.{leaf}"
    for theirs, own in JOINT.items():
        name = name.replace(theirs, own)
    inside = not name.startswith(("controlnet_blocks", "pos_embed_input"))
    tensor = tensors[f"base.{name}" if inside else name]
    return tensor if part is None else tensor.chunk(3)["qkv".index(letter)]
