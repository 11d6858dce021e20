"""Three steps of a ControlNet against the peers' own training script, of both kinds that it knows.

The released kind is what `sd35 train controlnet` trains. The joint kind reads the text with whole joint
blocks and was released for SD3 alone; it is built here of the transformer's own modules, so that they learn
what the script's do.
"""

import re
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import weights
from mmdit.model import spread
from sd35.train.objective import velocity_loss
from sd35.train.settings import Training

RELEASED = {
    "attn.to_out.0": "attn.proj",
    "norm1.linear": "adaLN_modulation.1",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
"""The script's names to those here; q, k and v are parts of `qkv`."""
QKV = re.compile(r"(.*)attn\.to_([qkv])\.(\w+)")


class Steps(NamedTuple):
    """Three steps of a net."""

    rows: list[dict[str, float]]
    gradients: list[dict[str, Tensor]]
    after: dict[str, Tensor]


def released(shared_reference):
    """The small net of the released kind; it reads no context."""
    tensors = load_file(shared_reference / "parity" / "controlnet_8b_like.safetensors")
    start = "weights/controlnet/"
    state = {key.removeprefix(start): one.float() for key, one in tensors.items() if key.startswith(start)}
    net = weights.build_controlnet(state).float()
    net.load_state_dict(state)
    for part in (net.pos_embed_input, net.controlnet_blocks):
        for parameter in part.parameters():
            nn.init.zeros_(parameter)
    return net.requires_grad_(True)


def part_of(name: str, tensors) -> Tensor:
    """The tensor of a released net, or the part of it, that the script calls so."""
    part = QKV.fullmatch(name)
    if part is not None:
        name = f"{part[1]}attn.qkv.{part[3]}"
    for theirs, own in RELEASED.items():
        name = name.replace(theirs, own)
    return tensors[name] if part is None else tensors[name].chunk(3)["qkv".index(part[2])]


@pytest.fixture(scope="module")
def run(peers, shared_reference, training_sinusoids, joint_controlnet, other_processor):
    """run(kind, dtype, where): three steps, taken once, of both kinds begun at zero."""
    golden, config = peers.stored(shared_reference, "controlnet_step")
    told, known = config["optimizer"], {}
    training = Training(
        precondition=True, learning_rate=told["lr"], weight_decay=told["weight_decay"], schedule="constant"
    )

    def taken(kind, dtype) -> Steps:
        base = peers.base_of(shared_reference, "controlnet_8b_like", "weights/base/", dtype)
        base.requires_grad_(False)
        joint = kind == "joint"
        depth = config["num_layers"]["joint"]
        net = joint_controlnet.begun(base, depth) if joint else released(shared_reference).to(dtype)
        own = net.base.t_embedder.mlp if joint else net.time_text_embed.timestep_embedder
        batch, control = peers.batch_of(golden, 3, dtype), golden["in/control_latents"].to(dtype)

        def predict(x, sigma, context, pooled):
            residuals = net(base, x, sigma, *([context] if joint else []), pooled, control)
            added = spread(residuals, base.config.depth, "diffusers")
            return base(x, sigma, context, pooled, residuals=added)

        def loss(step):
            chance = peers.drawn(golden, f"{kind}/step{step}", dtype)
            with peers.reading(training_sinusoids(chance.sigma), base.t_embedder.mlp, own):
                return velocity_loss(predict, batch, chance, training)

        parameters, rows = dict(net.named_parameters()), []
        gradients = peers.train(parameters, training, loss, lambda _, row: rows.append(row))
        return Steps(rows, gradients, {name: one.detach() for name, one in parameters.items()})

    def once(kind, dtype, where) -> Steps:
        if (kind, dtype, where) not in known:
            with other_processor(1) if where == "elsewhere" else nullcontext(), torch.enable_grad():
                known[kind, dtype, where] = taken(kind, dtype)
        return known[kind, dtype, where]

    return once


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["8b", "joint"])
def test_three_steps_of_a_controlnet_are_the_scripts(
    peers, shared_reference, joint_controlnet, run, kind, dtype, where
) -> None:
    """Begun at zero. Of the released kind, without norms, key biases have no gradient but rounding."""
    golden, config = peers.stored(shared_reference, "controlnet_step")
    ours = joint_controlnet.part_of if kind == "joint" else part_of
    rows, gradients, after = run(kind, dtype, where)
    for step, (row, found) in enumerate(zip(rows, gradients, strict=True)):
        norm = golden[f"{kind}/grad_norm_before_clip"][step].item()
        assert row["loss"] == pytest.approx(golden[f"{kind}/step{step}/loss"].item(), rel=peers.LOSS[dtype])
        assert row["gradient_norm"] == pytest.approx(norm, rel=2 * peers.LIMITS[dtype])
        parts = {name.split(".")[0] for name, one in found.items() if one.any()}
        told = config["info"][f"{kind}/step{step}/parts with a gradient"]
        assert (parts == {"controlnet_blocks"}) == (told == ["controlnet_blocks"])
        norms = torch.stack([ours(name, found).norm() for name in config["info"][f"{kind}/order"]])
        theirs = golden[f"{kind}/step{step}/grad_norm"] / max(norm, 1)
        assert torch.allclose(norms.float(), theirs, rtol=1e-5, atol=1e-6)
    start = f"{kind}/step0/grad/"
    clipped = golden[f"{kind}/grad_norm_before_clip"][0].clamp(min=1)
    theirs = {key.removeprefix(start): one / clipped for key, one in golden.items() if start in key}
    peers.assert_gradients({name: ours(name, gradients[0]) for name in theirs}, theirs, dtype)

    start = f"{kind}/after3/"
    theirs = {key.removeprefix(start): one for key, one in golden.items() if key.startswith(start)}
    theirs = {name: one for name, one in theirs.items() if not (kind == "8b" and name.endswith("to_k.bias"))}
    assert len(theirs) == {"8b": 12, "joint": 20}[kind]
    twins = [run(kind, one, where) for one in (torch.float64, torch.float32)]
    wide, narrow = ([{name: ours(name, one) for name in theirs} for one in twin.gradients] for twin in twins)
    found = {name: ours(name, after) for name in theirs}
    errors = peers.measured(wide, narrow)
    whole = peers.assert_weights(found, theirs, wide, errors, config["optimizer"]["lr"])
    # The script's weights have as much of float32's error as those here. Of the joint kind it is 1e-5, nearly
    # all of it in `to_add_out.bias`, which has gradients as small as 2e-8 beside AdamW's eps of 1e-8.
    true, *rounded = (
        torch.cat([ours(name, run(kind, *which).after).flatten() for name in theirs])
        for which in ((torch.float64, "here"), (torch.float32, "here"), (torch.float32, "elsewhere"))
    )
    own = max(peers.apart(one, true) for one in rounded)
    assert whole < {torch.float64: 2, torch.float32: 3}[dtype] * own
