"""The embedded model from nothing, in minutes: autoencoder, then text encoders and transformer.

The shipped weights, autoencoder and transformer alike, are of one run on one H100 (80 GB, 16 CPU cores, torch
2.11, CUDA 13.0), seed 0, 7.4 minutes all in all:

    python -m sd35.tiny.gpu --minutes 7.4 --output FOLDER

    autoencoder    1,644 steps of 32 pictures, 124 s from the start; its decoder alone, 1,163 steps, 54 s
    transformer    3,665 steps of 1,024 captions, 245 s, on latents of 217,000 pictures

Another machine's speed gives other weights, since a stage's length is a share of the time. A second run of 72
seconds (`--resume FOLDER --seed 1`, 639 steps) was compared on 50 held-out prompts of one shape, judged right
46 times before and 47 after by one judge, 43 times both by another, and was not taken. A processor needs a
day for the same number of pictures, and less time gives a lesser model.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vae import VAE

from ..errors import SettingsError
from ..noise import seeded
from .autoencoder import train_autoencoder
from .bank import filling
from .fit import Run, Trainer
from .painter import Painter
from .pieces import built, half, join, read_weights, write_pieces
from .transformer import PLAN, RESUMED, train_painter
from .vocabulary import Tokenizers, write_tokenizers

STATE = "training"  # the folder of a run, in the folder of its model
AUTOENCODER_SHARE = 0.4  # of the time, from nothing
WARM_LOG = "warm.log"
WRITING = 6.0  # seconds kept for the last file


@dataclass(frozen=True)
class Sizes:
    """How much at a time."""

    scenes: int  # drawn beforehand
    workers: int  # processes that draw them
    pictures: int  # of a step of the autoencoder
    captions: int  # of a step of the transformer
    fill: int  # pictures encoded before the transformer's first step
    renew: int  # and for each step


CARD = Sizes(scenes=600_000, workers=14, pictures=32, captions=1024, fill=100_000, renew=32)
PROCESSOR = Sizes(scenes=30_000, workers=1, pictures=4, captions=32, fill=4096, renew=2)
SMALL = Sizes(scenes=1024, workers=1, pictures=2, captions=8, fill=64, renew=1)


class Progress:
    """What there is by now of the model, and where it is written."""

    def __init__(self, painter: Painter, vae: VAE | None, folder: Path) -> None:
        self.painter, self.vae, self.folder = painter, vae, folder
        self.trainer: Trainer | None = None

    def watch(self, trainer: Trainer) -> None:
        """Take from now on what this trainer has."""
        self.trainer = trainer

    def write(self) -> None:
        """Write all weights, those in training as their average."""
        model = None if self.trainer is None else self.trainer.averaged()
        painter = model if isinstance(model, Painter) else self.painter
        vae = model if isinstance(model, VAE) else self.vae
        if vae is not None:
            write_pieces(half(painter, vae), self.folder)


def train(
    output: Path,
    *,
    minutes: float,
    seed: int = 0,
    device: str = "cpu",
    resume: Path | None = None,
    autoencoder: float | None = None,
) -> None:
    """Train the embedded model and write it to a folder.

    Args:
        output: a new folder, or an empty one.
        minutes: how long.
        seed: of every random number in it. Another machine's speed and arithmetic still give other weights.
        device: where to train, in bfloat16.
        resume: the folder of an earlier run, or `tiny`, whose model is trained on.
        autoencoder: share of the time for the autoencoder; None is 0.4 from nothing, and 0 where a model is
            trained on. Its latents are encoded anew then, and the transformer learns them from where it is.

    Raises:
        FileExistsError: the folder holds something.
        SettingsError: what is to be resumed is not there, there is no time at all, or a share that is none.
    """
    check_plan(minutes, resume, autoencoder)
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty: choose another output folder")
    train_pieces(
        output / STATE, minutes=minutes, seed=seed, device=device, resume=resume, autoencoder=autoencoder
    )
    join(output / STATE, output)


def check_plan(minutes: float, resume: Path | None, autoencoder: float | None) -> None:
    """See that there is time for what is to be trained.

    Raises:
        SettingsError: there is not.
    """
    if not 0 < minutes < float("inf"):
        raise SettingsError(f"minutes must be a positive number, got {minutes:g}")
    if autoencoder is not None and not 0 <= autoencoder < 1:
        raise SettingsError(f"autoencoder must be a share of the time, 0 to below 1, got {autoencoder:g}")
    if autoencoder == 0 and resume is None:
        raise SettingsError("autoencoder must be above 0 where nothing is resumed: there is none yet")


def train_pieces(
    folder: Path,
    *,
    minutes: float,
    seed: int = 0,
    device: str = "cpu",
    resume: Path | None = None,
    autoencoder: float | None = None,
    sizes: Sizes | None = None,
    began: float | None = None,
) -> None:
    """Train, and leave the weights in pieces with a log; otherwise as `train`.

    Args:
        folder: where to; made if it does not exist.
        minutes: as for `train`.
        seed: likewise.
        device: likewise.
        resume: likewise.
        autoencoder: likewise.
        sizes: None takes those for the device.
        began: from when the minutes count, on `time.monotonic`'s clock; None is now.
    """
    check_plan(minutes, resume, autoencoder)
    where = torch.device(device)
    on_card = where.type == "cuda"
    if autoencoder is None:
        autoencoder = AUTOENCODER_SHARE if resume is None else 0.0
    sizes = sizes or (CARD if on_card else PROCESSOR)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(minutes, folder / "train.log", began=time.monotonic() if began is None else began)
    with TemporaryDirectory() as temporary:
        write_tokenizers(Path(temporary))
        tokenizers = Tokenizers(Path(temporary))
        start = None if resume is None else built(read_weights(resume), tokenizers)
        warming = warm(sizes.captions, Path(temporary)) if on_card else None
        scenes, workers = sizes.scenes, sizes.workers
        with filling(scenes, Path(temporary), seed=seed, workers=workers, device=where) as bank:
            run.say(
                f"torch {torch.__version__} on {torch.cuda.get_device_name() if on_card else 'a processor'}"
            )
            painter, vae = start or (Painter(tokenizers.clip_size, tokenizers.t5_size, seeded(seed, 4)), None)
            progress = Progress(painter.to(where), vae, folder)
            run.save = progress.write
            if vae is None or autoencoder:
                until = WRITING + (1 - autoencoder) * (run.left() - WRITING)
                vae = train_autoencoder(
                    run,
                    bank,
                    batch=sizes.pictures,
                    seed=seed,
                    until=until,
                    device=where,
                    watch=progress.watch,
                    vae=vae,
                )
                progress.vae = vae
                progress.write()
            progress.vae = vae = vae.to(where)
            train_painter(
                run,
                painter,
                vae,
                bank,
                tokenizers,
                plan=PLAN if start is None else RESUMED,
                batch=sizes.captions,
                fill=sizes.fill,
                renew=sizes.renew,
                seed=seed,
                until=WRITING,
                watch=progress.watch,
                compiled=warming is not None and is_warm(warming, Path(temporary), run),
            )
            progress.write()
            run.say(f"written to {folder}")


def warm(batch: int, folder: Path) -> subprocess.Popen[bytes]:
    """Begin to compile the transformer's blocks in another process, into the cache on disk that torch keeps.

    There it costs no time of the training, and neither a failure nor a hang can stop that.
    """
    command = [sys.executable, "-m", "sd35.tiny.warm", str(batch)]
    with (folder / WARM_LOG).open("wb") as log:
        return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=log, stderr=subprocess.STDOUT)


def is_warm(warming: subprocess.Popen[bytes], folder: Path, run: Run) -> bool:
    """Whether the other process has compiled all; it is ended if it has not yet."""
    status = warming.poll()
    if status is None:
        warming.kill()
        warming.wait()
    lines = (folder / WARM_LOG).read_text(errors="replace").strip().splitlines()[-4:]
    run.say(
        f"compiling ahead ended with {'no end in sight' if status is None else status}: {' | '.join(lines)}"
    )
    return status == 0
