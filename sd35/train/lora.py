"""Train a LoRA: small matrices beside the layers of a model that stays as it is (arXiv:2106.09685)."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor

from mmdit import MMDiT

from ..documented import takes
from ..found import Place
from .blocks import prepare_blocks
from .fresh import fresh_lora, save_lora
from .loop import fit
from .memory import memory_of
from .methods import LoraTraining
from .objective import LossOf, velocity_loss
from .session import Places, Session
from .settings import training_of
from .targets import TEXT_TARGETS, target_paths

FILE = "lora.safetensors"


@takes(LoraTraining)
def train_lora(
    source: Place,
    data: str | Path,
    output: str | Path,
    *,
    places: Mapping[str, Any] | None = None,
    **given: Any,
) -> Path:
    """Train a LoRA on a folder of pictures with captions.

        sd35.train_lora("stabilityai/stable-diffusion-3.5-medium", "pictures", "run", rank=16, steps=1000)

    Args:
        source: the model, as in `sd35.load`.
        data: the folder; see `read_folder`.
        output: the folder of the run, with lora.safetensors, state.safetensors, log.csv and samples.
        places: the other fields of `Places`: device, dtype, resume, cache, ...
        given: the settings below.

    Returns:
        The path of the LoRA.

    Raises:
        SettingsError: anything that cannot be trained with, before work starts.
        DivergedError: the loss is not a number, and the weights before are on disk; or the run is lost.
    """
    training = training_of(LoraTraining, given)
    session = Session(Places(source=source, data=data, output=output, **(places or {})), training, "lora")
    session.read_data()
    return learn_lora(session, training, session.transformer(), session.loss_of(velocity_loss))


def learn_lora(
    session: Session, training: LoraTraining, mmdit: MMDiT, loss_of: LossOf, **made_of: str
) -> Path:
    """Put a LoRA on a transformer, and on CLIP where that is asked for, and train it.

    Args:
        session: of the run.
        training: the settings.
        mmdit: the transformer.
        loss_of: see `LossOf`.
        made_of: hashes of what else the weights depend on.
    """
    text = session.clips() if training.text_target else None
    model = SimpleNamespace(mmdit=mmdit, text=text)
    paths = {"mmdit": target_paths(mmdit, training.target)}
    for part in ("clip_l", "clip_g") if text is not None else ():
        if getattr(text, part) is not None:
            paths[part] = target_paths(getattr(text, part), training.text_target, TEXT_TARGETS)
    alpha = training.rank if training.alpha is None else training.alpha
    parameters = fresh_lora(
        model, paths, rank=training.rank, alpha=alpha, dora=training.dora, seed=training.seed
    )
    session.say(f"LoRA of rank {training.rank}: {memory_of(mmdit, parameters, session.largest, training)}")
    prepare_blocks(mmdit, training)

    def loss(number: int) -> Tensor:
        return loss_of(mmdit, text, number)

    def export(folder: Path) -> None:
        save_lora(model, folder / FILE, cast(Any, training.spelling))

    fit(parameters, loss, training, session.run(mmdit, text, made_of=made_of), export)
    return session.folder / FILE
