"""Train every weight of the transformer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from mmdit import MMDiT

from ..documented import takes
from ..errors import SettingsError
from ..found import Place
from ..saved.write import written
from .blocks import prepare_blocks
from .loop import fit
from .memory import memory_of
from .methods import FullTraining
from .objective import LossOf, velocity_loss
from .session import Places, Session
from .settings import Training, training_of
from .shard import mesh_of, save_sharded, shard_weights

FILE, PREFIX = "model.safetensors", "model.diffusion_model."


@takes(FullTraining)
def train_full(
    source: Place,
    data: str | Path,
    output: str | Path,
    *,
    places: Mapping[str, Any] | None = None,
    **given: Any,
) -> Path:
    """Train the whole transformer on a folder of pictures with captions.

        path = sd35.train_full("tiny", "pictures", "run", steps=1000)
        pipe = sd35.load(path, vae="tiny", text_encoders="tiny")

    Args:
        source: the model, as in `sd35.load`.
        data: the folder; see `read_folder`.
        output: the folder of the run, with model.safetensors, state.safetensors, log.csv and samples.
        places: as in `train_lora`.
        given: the settings below.

    Returns:
        The path of the transformer, under the official keys, in the dtype that it was trained in.

    Raises:
        SettingsError: anything that cannot be trained with, before work starts.
        DivergedError: the loss is not a number, and the weights before are on disk; or the run is lost.
    """
    training = training_of(FullTraining, given)
    session = Session(Places(source=source, data=data, output=output, **(places or {})), training, "full")
    session.read_data()
    mmdit = session.transformer(mapped=session.world.size > 1)
    return learn_full(session, training, mmdit, session.loss_of(velocity_loss))


def learn_full(session: Session, training: Training, mmdit: MMDiT, loss_of: LossOf, **made_of: str) -> Path:
    """Train all weights of a transformer, but for its table of positions, which is no weight.

    Several processes spread the weights by FSDP2, block by block (`shard`).

    Args:
        session: of the run.
        training: the settings.
        mmdit: the transformer.
        loss_of: see `LossOf`.
        made_of: hashes of what else the weights depend on.
    """
    several = session.world.size > 1
    if several and training.optimizer != "adamw":
        raise SettingsError(f"{training.optimizer} needs whole matrices: several processes train by adamw")
    if several:
        shard_weights(mmdit, mesh_of(session.device), session.dtype)
    parameters = dict(mmdit.requires_grad_(True).named_parameters())
    if not several:
        session.say(f"all weights: {memory_of(mmdit, parameters, session.largest, training)}")
    prepare_blocks(mmdit, training)

    def loss(number: int) -> Tensor:
        return loss_of(mmdit, None, number)

    def export(folder: Path) -> None:
        size = session.found.size
        tensors = {PREFIX + name: one.to(session.dtype) for name, one in mmdit.state_dict().items()}
        metadata = {"modelspec.resolution": f"{size.width}x{size.height}"}
        if several:
            save_sharded(tensors, folder / FILE, metadata)
            return
        with written(folder / FILE, overwrite=True) as temporary:
            save_file(tensors, temporary, metadata)

    fit(parameters, loss, training, session.run(mmdit, made_of=made_of), export)
    return session.folder / FILE
