"""Reflow: train a flow on the pairs that it makes itself, so that few steps suffice (arXiv:2209.03003)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

import flow
from mmdit import MMDiT
from textenc import TextEncoder

from ..documented import takes
from ..errors import SettingsError
from ..found import Place
from ..noise import draw_noise, generators, seeded
from ..schedules import Preset
from .buckets import batches
from .cache import Cache, digest
from .data import ORDER, Batch
from .encode import EMPTY, encode_texts
from .full import learn_full
from .log import bar
from .lora import learn_lora
from .methods import ReflowTraining
from .objective import Draw, LossOf, Predict, draw, velocity_loss
from .session import Places, Session
from .settings import training_of

FOLDER = "pairs"


@takes(ReflowTraining, but=ReflowTraining.without)
def train_reflow(
    source: Place,
    data: str | Path,
    output: str | Path,
    *,
    places: Mapping[str, Any] | None = None,
    **given: Any,
) -> Path:
    """Make pairs of noise and latents by the model's own ODE, and train it on them.

    Pairs are drawn once, into the folder "pairs" of the run, each in a file; a run that was cut off goes on
    with those that are missing.

    Args:
        source: the model, as in `sd35.load`.
        data: a text file of prompts, one in each line.
        output: as in `train_lora`.
        places: as in `train_lora`.
        given: the settings below.

    Returns:
        The path of the LoRA, or of the transformer with `whole`. Guidance is part of it: draw with a
        guidance scale of 1.

    Raises:
        SettingsError: anything that cannot be trained with, before work starts.
        DivergedError: the loss is not a number, and the weights before are on disk; or the run is lost.
    """
    training = training_of(ReflowTraining, given)
    prompts = read_prompts(Path(data))
    kind = "reflow, whole" if training.whole else "reflow"
    session = Session(Places(source=source, data=data, output=output, **(places or {})), training, kind)
    session.in_turn(
        lambda: encode_texts(session.found, [*prompts, EMPTY], session.cache, session.device, session.dtype)
    )
    mmdit = session.transformer()
    pairs = session.in_turn(lambda: make_pairs(session, training, mmdit, prompts))
    learn: Any = learn_full if training.whole else learn_lora
    loss_of = paired(session, training, pairs, prompts)
    return learn(session, training, mmdit, loss_of, prompts=digest(*prompts))


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, without the empty ones.

    Raises:
        SettingsError: there is no such file, or no prompt in it.
    """
    if not path.is_file():
        raise SettingsError(f"{path} is no file: reflow takes a text file of prompts, one in each line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise SettingsError(f"there is no prompt in {path}")
    return prompts


def make_pairs(session: Session, training: ReflowTraining, mmdit: MMDiT, prompts: Sequence[str]) -> Cache:
    """Draw the pairs that are not there yet: number k by prompt k, in turn, and by the seed + k."""
    drawn_by = (
        *(training.pair_solver, training.pair_steps, training.pair_guidance),
        *(training.pair_schedule, training.schedule_shift, training.seed, *training.pair_interval),
    )
    made_by = digest(session.found.fingerprint, *prompts, " ".join(map(str, drawn_by)))
    pairs = Cache(session.folder / FOLDER, made_by)
    preset = cast("Preset", training.pair_schedule)
    sigmas = flow.sigmas(training.pair_steps, training.schedule_shift, preset)
    count, size = training.pairs, training.batch_size
    for number in range(count):
        if pairs.has(f"{number:06}"):
            pairs.read(f"{number:06}")  # a damaged one is told now, and not in the middle of the run
    drawn_together = [range(first, min(first + size, count)) for first in range(0, count, size)]
    missing = [numbers for numbers in drawn_together if not all(pairs.has(f"{one:06}") for one in numbers)]
    numbers: range
    for numbers in bar(missing, shown=session.places.progress and session.world.is_main, desc=FOLDER):
        texts = [prompts[one % len(prompts)] for one in numbers]
        velocity = guided_velocity(session, training, mmdit, texts)
        noise = draw_noise(generators([training.seed + one for one in numbers]), shape_of(session, mmdit))
        made = next(flow.reflow_pairs(velocity, [noise.to(session.device)], sigmas, training.pair_solver))
        for row, number in enumerate(numbers):
            pair = {"noise": made.noise[row : row + 1], "latents": made.data[row : row + 1]}
            pairs.kept(f"{number:06}", lambda pair=pair: pair)
    return pairs


def shape_of(session: Session, mmdit: MMDiT) -> tuple[int, int, int]:
    """Of the latents of one picture."""
    (width, height), factor = session.size, session.found.vae.factor
    return mmdit.config.channels, height // factor, width // factor


def guided_velocity(
    session: Session, training: ReflowTraining, mmdit: MMDiT, prompts: Sequence[str]
) -> flow.Velocity:
    """The flow that pairs are made by, of a batch with these prompts."""
    texts = [session.encode(prompt) for prompt in prompts]
    context, pooled = (torch.cat(part) for part in zip(*texts, strict=True))
    empty_context, empty_pooled = session.encode(EMPTY)
    empty = empty_context.expand_as(context), empty_pooled.expand_as(pooled)
    return flow.guided(
        lambda x, sigma: mmdit(x, sigma, context, pooled),
        lambda x, sigma: mmdit(x, sigma, *empty),
        training.pair_guidance,
        interval=training.pair_interval,
    )


def paired(session: Session, training: ReflowTraining, pairs: Cache, prompts: Sequence[str]) -> LossOf:
    """The loss on pairs: the same flow matching, with the noise that belongs to the latents."""
    size, world = training.batch_size, session.world
    per_epoch = -(-training.pairs // size)

    def loss_of(predict: Predict, text: TextEncoder | None, number: int) -> Tensor:
        epoch, place = divmod(number, per_epoch)
        order = batches([0] * training.pairs, size, seeded(training.seed, ORDER, epoch))[place]
        read = [pairs.read(f"{one:06}") for one in order[world.rank :: world.size]]
        noise, latents = (torch.cat([one[name] for one in read]) for name in ("noise", "latents"))
        captions = tuple(prompts[one % len(prompts)] for one in order[world.rank :: world.size])
        texts = [session.encode(caption, text) for caption in captions]
        context, pooled = (torch.cat(part) for part in zip(*texts, strict=True))
        batch = Batch(latents, context, pooled, captions).to(session.device)
        sigma = world.rows(draw(torch.Size((size, *latents.shape[1:])), training, number).sigma)
        return velocity_loss(predict, batch, Draw(noise, sigma).to(session.device), training)

    return loss_of
