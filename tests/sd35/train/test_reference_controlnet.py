"""Three steps of a ControlNet against the peers' own training script, of both kinds that it knows.

The released kind is what `sd35 train controlnet` trains. The joint kind reads the text with whole joint
blocks and was released for SD3 alone; it is built here of the transformer's own modules, so that they learn
what the script's do.
"""

import re
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import weights
from mmdit.embed import PatchEmbed
from mmdit.model import spread
from sd35.train.objective import velocity_loss
from sd35.train.settings import Training

FEED = {"ff.net.0.proj": "mlp.fc1", "ff.net.2": "mlp.fc2"}
RELEASED = {"attn.to_out.0": "attn.proj", "norm1.linear": "adaLN_modulation.1", **FEED}
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
"""The script's names to those here; q, k and v are parts of `qkv`."""
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


def released(shared_reference):
    """The small net of the released kind; it reads no context."""
    tensors = load_file(shared_reference / "parity" / "controlnet_8b_like.safetensors")
    start = "weights/controlnet/"
    state = {key.removeprefix(start): one.float() for key, one in tensors.items() if key.startswith(start)}
    net = weights.build_controlnet(state).float()
    net.load_state_dict(state)
    return net.requires_grad_(True)


def begun(kind: str, base, shared_reference, depth: int):
    """The net of a kind whose control patches and outputs are zero."""
    net = released(shared_reference) if kind == "8b" else JointControlNet(base, depth)
    for part in (net.pos_embed_input, net.controlnet_blocks):
        for parameter in part.parameters():
            nn.init.zeros_(parameter)
    return net.to(base.dtype)


def ours(name: str, kind: str, tensors) -> torch.Tensor:
    """The parameter, or the part of it, that the script calls so."""
    part = QKV.fullmatch(name)
    if part is not None:
        block, way, letter, leaf = part.groups()
        stream = "" if kind == "8b" else {"to": "x_block.", "add": "context_block."}[way]
        name = f"{block}{stream}attn.qkv.{leaf}"
    for theirs, own in (RELEASED if kind == "8b" else JOINT).items():
        name = name.replace(theirs, own)
    inside = kind == "joint" and not name.startswith(("controlnet_blocks", "pos_embed_input"))
    tensor = tensors[f"base.{name}" if inside else name]
    return tensor if part is None else tensor.chunk(3)["qkv".index(letter)]


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["8b", "joint"])
def test_three_steps_of_a_controlnet_are_the_scripts(
    peers, shared_reference, training_sinusoids, other_processor, kind, dtype, where
) -> None:
    """Begun at zero. Of the released kind, without norms, key biases have no gradient but rounding."""
    golden, config = peers.stored(shared_reference, "controlnet_step")
    base = peers.base_of(shared_reference, "controlnet_8b_like", "weights/base/", dtype).requires_grad_(False)
    net = begun(kind, base, shared_reference, config["num_layers"]["joint"])
    own = net.time_text_embed.timestep_embedder if kind == "8b" else net.base.t_embedder.mlp
    told = config["optimizer"]
    training = Training(
        precondition=True, learning_rate=told["lr"], weight_decay=told["weight_decay"], schedule="constant"
    )
    batch, control = peers.batch_of(golden, 3, dtype), golden["in/control_latents"].to(dtype)

    def predict(x, sigma, context, pooled):
        text = () if kind == "8b" else (context,)
        residuals = net(base, x, sigma, *text, pooled, control)
        added = spread(residuals, base.config.depth, "diffusers")
        return base(x, sigma, context, pooled, residuals=added)

    def loss(step):
        chance = peers.drawn(golden, f"{kind}/step{step}", dtype)
        with peers.reading(training_sinusoids(chance.sigma), base.t_embedder.mlp, own):
            return velocity_loss(predict, batch, chance, training)

    parameters = dict(net.named_parameters())

    def check(step, row):
        norm = golden[f"{kind}/grad_norm_before_clip"][step].item()
        assert row["loss"] == pytest.approx(golden[f"{kind}/step{step}/loss"].item(), rel=peers.LOSS[dtype])
        assert row["gradient_norm"] == pytest.approx(norm, rel=2 * peers.LIMITS[dtype])
        found = peers.gradients_of(parameters)
        parts = {name.split(".")[0] for name, one in found.items() if one.any()}
        told = config["info"][f"{kind}/step{step}/parts with a gradient"]
        assert (parts == {"controlnet_blocks"}) == (told == ["controlnet_blocks"])
        norms = torch.stack([ours(name, kind, found).norm() for name in config["info"][f"{kind}/order"]])
        theirs = golden[f"{kind}/step{step}/grad_norm"] / max(norm, 1)
        assert torch.allclose(norms.float(), theirs, rtol=1e-5, atol=1e-6)

    with other_processor(1) if where == "elsewhere" else nullcontext():
        gradients = peers.train(parameters, training, loss, check)
    start = f"{kind}/step0/grad/"
    clipped = golden[f"{kind}/grad_norm_before_clip"][0].clamp(min=1)
    theirs = {key.removeprefix(start): one / clipped for key, one in golden.items() if start in key}
    peers.assert_gradients({name: ours(name, kind, gradients[0]) for name in theirs}, theirs, dtype)
    start = f"{kind}/after3/"
    theirs = {key.removeprefix(start): one for key, one in golden.items() if key.startswith(start)}
    theirs = {name: one for name, one in theirs.items() if not (kind == "8b" and name.endswith("to_k.bias"))}
    assert len(theirs) == {"8b": 12, "joint": 20}[kind]
    steps = [{name: ours(name, kind, one) for name in theirs} for one in gradients]
    found = {name: ours(name, kind, parameters) for name in theirs}
    # Gradients as small as 2e-8, near AdamW's eps, move `to_add_out.bias` by their rounding.
    later = 3e-5 if kind == "joint" else None
    whole = peers.assert_weights(found, theirs, steps, told["lr"], dtype, later=later)
    assert whole < {"8b": 2e-6, "joint": 2e-5}[kind]
