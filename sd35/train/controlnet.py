"""Train a ControlNet: a copy of the transformer's first blocks that reads a picture (arXiv:2302.05543)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmdit import ControlNet, ControlNetConfig, MMDiT

from ..adapters.control import CONTROL_TYPES
from ..documented import takes
from ..found import Place
from ..saved.write import written
from .blocks import prepare_blocks
from .data import Batch
from .loop import fit
from .memory import Memory, memory_of
from .methods import ControlNetTraining
from .objective import Draw, Predict, velocity_loss
from .session import Places, Session
from .settings import Training, training_of

FILE = "controlnet.safetensors"


@takes(ControlNetTraining, but=ControlNetTraining.without)
def train_controlnet(
    source: Place,
    data: str | Path,
    output: str | Path,
    *,
    control_data: str | Path,
    places: Mapping[str, Any] | None = None,
    **given: Any,
) -> Path:
    """Train a ControlNet for a model, which stays as it is.

    Args:
        source: the model, as in `sd35.load`.
        data: the folder of pictures with captions; see `read_folder`.
        output: the folder of the run, with controlnet.safetensors, state.safetensors and log.csv.
        control_data: a folder with a control picture of the same name for each picture.
        places: as in `train_lora`.
        given: the settings below.

    Returns:
        The path of the ControlNet, under the keys of the official files.

    Raises:
        SettingsError: anything that cannot be trained with, before work starts.
        DivergedError: the loss is not a number, and the weights before are on disk; or the run is lost.
    """
    training = training_of(ControlNetTraining, given)
    places_ = Places(source=source, data=data, output=output, **(places or {}))
    session = Session(places_, training, "controlnet")
    session.read_data(Path(control_data), training.control_type)
    mmdit = session.transformer().requires_grad_(False)
    net = controlnet_of(mmdit, training.depth, training.control_type).requires_grad_(True)
    parameters = dict(net.named_parameters())
    session.say(f"ControlNet of {net.config.depth} blocks: {_memory(session, mmdit, net, parameters)}")
    prepare_blocks(net, training)
    prepare_blocks(mmdit, training)

    def objective(_: Predict, batch: Batch, drawn: Draw, training: Training) -> Tensor:
        return velocity_loss(controlled(mmdit, net, batch), batch, drawn, training)

    loss_of = session.loss_of(objective)

    def export(folder: Path) -> None:
        tensors = {name: one.contiguous() for name, one in net.state_dict().items()}
        with written(folder / FILE, overwrite=True) as temporary:
            save_file(tensors, temporary)

    run = session.run(mmdit, predict_of=lambda batch: controlled(mmdit, net, batch))
    fit(parameters, lambda number: loss_of(mmdit, None, number), training, run, export)
    return session.folder / FILE


def _memory(
    session: Session, mmdit: MMDiT, net: ControlNet, parameters: Mapping[str, nn.Parameter]
) -> Memory:
    """What the run will take."""

    def predict(x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        return controlled(mmdit, net, Batch(x, context, pooled, ("",), x))(x, sigma, context, pooled)

    return memory_of(mmdit, parameters, session.largest, session.training, predict)


def controlled(mmdit: MMDiT, net: ControlNet, batch: Batch) -> Predict:
    """The transformer with what the ControlNet adds for the control pictures of a batch."""
    assert batch.control is not None
    control = batch.control

    def predict(x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        residuals = net(mmdit, x, sigma, pooled, control.to(x))
        return mmdit(x, sigma, context, pooled, residuals=residuals)

    return predict


@torch.no_grad()
def controlnet_of(mmdit: MMDiT, depth: int | None = None, control_type: str | None = None) -> ControlNet:
    """A ControlNet of the released kind that does nothing yet, made of a transformer's own weights.

    Its blocks are the image stream of the first blocks: qkv, proj, MLP and modulation (of dual blocks the
    first six vectors). The norms of query and key have no place in it. What it reads the control picture
    with, and what it adds its residuals by, are zero; so in the first step only the latter learn.

    Args:
        mmdit: the transformer.
        depth: blocks; None takes half of the transformer's.
        control_type: what it will read, noted in its file.

    Raises:
        ValueError: it would have more blocks than the transformer.
    """
    config = mmdit.config
    depth = max(1, config.depth // 2) if depth is None else depth
    if depth > config.depth:
        raise ValueError(f"depth must be at most the transformer's {config.depth}, got {depth}")
    net = ControlNet(
        ControlNetConfig(
            dim=config.dim,
            depth=depth,
            num_heads=config.num_heads,
            pooled_dim=config.pooled_dim,
            channels=config.channels,
            patch_size=config.patch_size,
            typed=control_type is not None,
        )
    ).to(mmdit.pos_embed)
    for part in (net.pos_embed_input, *net.controlnet_blocks):
        for parameter in part.parameters():
            nn.init.zeros_(parameter)
    if control_type is not None and net.control_type is not None:
        net.control_type.fill_(CONTROL_TYPES.index(control_type))
    ours, theirs = dict(net.named_parameters()), dict(mmdit.named_parameters())
    for name, source in _sources(depth).items():
        ours[name].copy_(theirs[source][: len(ours[name])])
    return cast(ControlNet, net)


def _sources(depth: int) -> dict[str, str]:
    """Each tensor of a ControlNet to that of the transformer which it begins as."""
    pairs = {
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    }
    for i in range(depth):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"):
            pairs[f"transformer_blocks.{i}.{layer}"] = f"joint_blocks.{i}.x_block.{layer}"
    return {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in pairs.items() for leaf in ("weight", "bias")}
