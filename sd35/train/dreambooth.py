"""DreamBooth: teach a model one subject, and keep what it knows of the subject's class (arXiv:2208.12242)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdit import MMDiT
from textenc import TextEncoder
from vae.image import to_pil

from ..documented import takes
from ..found import Place
from ..saved.write import written
from .data import Data
from .encode import EMPTY, encode_texts
from .full import learn_full
from .log import bar
from .lora import learn_lora
from .methods import DreamBoothTraining
from .objective import LossOf, Predict, velocity_loss
from .samples import draw_pictures
from .session import Places, Session
from .settings import training_of

FOLDER = "class"
UNGUIDED = 1.0
"""Guidance of class pictures: none. A flow that learns from what it draws itself stays as it is. Of guided
pictures it would learn guidance, which would then be applied a second time."""
APART = 1 << 40
"""Added to the number of a batch of class pictures, so that their noise is their own."""


@takes(DreamBoothTraining)
def train_dreambooth(
    source: Place,
    data: str | Path,
    output: str | Path,
    *,
    class_data: str | Path | None = None,
    places: Mapping[str, Any] | None = None,
    **given: Any,
) -> Path:
    """Train on pictures of one subject, with prior preservation on class pictures that the model draws.

    Args:
        source: the model, as in `sd35.load`.
        data: pictures of the subject; `caption` is that of all of them, "a photo of sks dog" for instance.
        output: as in `train_lora`.
        class_data: a folder of class pictures; those that are missing there of `class_pictures` are drawn
            into it. None is the folder "class" in the output.
        places: as in `train_lora`.
        given: the settings below.

    Returns:
        The path of the LoRA, or of the transformer with `whole`.

    Raises:
        SettingsError: anything that cannot be trained with, before work starts.
        DivergedError: the loss is not a number, and the weights before are on disk; or the run is lost.
    """
    training = training_of(DreamBoothTraining, given)
    kind = "dreambooth, whole" if training.whole else "dreambooth"
    session = Session(Places(source=source, data=data, output=output, **(places or {})), training, kind)
    session.read_data()
    encode_texts(session.found, [*training.class_prompt, EMPTY], session.cache, session.device, session.dtype)
    mmdit = session.transformer()
    folder = session.folder / FOLDER if class_data is None else Path(class_data)
    if session.world.is_main:
        draw_class(session, training, mmdit, folder)
    session.world.wait()
    prior = session.read(folder)
    loss_of = preserved(session, training, prior)
    learn: Any = learn_full if training.whole else learn_lora
    return learn(session, training, mmdit, loss_of, prior=prior.digest)


def preserved(session: Session, training: DreamBoothTraining, prior: Data) -> LossOf:
    """The loss with prior preservation, two means and not one (section 3.2, equation 2).

    E ‖v - target‖²  of the subject  +  prior_weight · E ‖v - target‖²  of the class pictures
    """
    subject, of_class = session.loss_of(velocity_loss), session.loss_of(velocity_loss, prior, APART)

    def loss_of(predict: Predict, text: TextEncoder | None, number: int) -> Tensor:
        loss = subject(predict, text, number)
        return loss + training.prior_weight * of_class(predict, text, number)

    return loss_of


def draw_class(session: Session, training: DreamBoothTraining, mmdit: MMDiT, folder: Path) -> None:
    """Draw those class pictures that are not in the folder yet, each with its prompt beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in range(training.class_pictures) if not (folder / f"{n:05}.png").exists()]
    if not missing:
        return
    vae = session.autoencoder()
    for number in bar(missing, shown=session.places.progress, desc="class pictures"):
        prompt = training.class_prompt[number % len(training.class_prompt)]
        seeds = [training.seed + number]
        image = draw_pictures(
            mmdit, vae, session.encode, [prompt], session.size, seeds, guidance_scale=UNGUIDED
        )
        (folder / f"{number:05}.txt").write_text(prompt, encoding="utf-8")
        with written(folder / f"{number:05}.png", overwrite=True) as temporary:
            to_pil(image[0]).save(temporary, "PNG")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
