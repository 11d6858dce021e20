"""The embedded model's ControlNet, which reads a drawing of outlines: how it was made, and is made again.

    python -m sd35.tiny.controlnet --output runs/outline            # can be stopped
    python -m sd35.tiny.controlnet --output runs/outline --resume   # goes on, to the same weights

The shipped weights, `weights/outline`, are controlnet.safetensors of that folder: 1,900 steps of 16 pictures,
drawn from 3,072, in 18 minutes of one core (Intel Xeon with AMX, torch 2.13): 4.5 to paint and encode the
pictures and 13.2 to train. `--steps` takes the same run further.

It is a ControlNet of the released kind, trained as `sd35 train controlnet --control-type canny` trains one:
the net, the loss and the loop are the same. Only its pictures are painted, not read from a folder. One in
five is as the model has learned them, with a caption that may tell size and place; in the others shapes lie
anywhere, at any size and turn, and captions say nothing of that (`traced.py`).
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from weights import load_clip, load_mmdit, load_t5, load_vae
from weights.source import TINY

from ..adapters.control import control_image
from ..found import find
from ..noise import seeded
from ..train.cache import digest
from ..train.controlnet import FILE, controlled, controlnet_of
from ..train.data import Batch
from ..train.loop import Run, fit, new_folder
from ..train.methods import ControlNetTraining
from ..train.objective import draw, velocity_loss
from ..train.state import identity_of
from .autoencoder import NOISE
from .bank import LENGTH
from .captions import caption
from .fit import save
from .painter import Painter
from .painting import GRAIN, GRAIN_SIDE, coloured, distances, layout_of, table_of
from .scenes import Scene, training_scene
from .traced import chosen, drawing, free_caption, free_layout, free_scene, is_kept_back
from .transformer import JITTER, SHORT, half_encoder, padded_ids
from .vocabulary import Tokenizers

TRAINING = ControlNetTraining(
    steps=1900,
    batch_size=16,
    learning_rate=1e-3,
    optimizer="muon",
    weight_decay=0.0,
    warmup=50,
    schedule="constant",  # so that a run may be stopped early, or go on for longer
    ema=0.998,
    schedule_shift=6.0,  # where a shape is, is decided near pure noise
    caption_dropout=0.12,
    depth=2,  # 3.2 MB in float16; with three blocks it would be 4.5 MB
    control_type="canny",
    save_every=100,
)
CHUNK, CHUNKS = 128, 24  # scenes of a file of the bank, and files
CAPTIONS = 4  # of a scene
WORDED = 0.2  # share of scenes that are as the model knows them
SCENES, ROWS = 31, 32  # what numbers are drawn for
PART = 16  # pictures that are encoded at a time
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Bank:
    """Scenes as the training sees them, N of them."""

    latents: Tensor  # of the pictures, (N, 16, 16, 16), float16
    control: Tensor  # of the drawings of their outlines, likewise
    clip: Tensor  # token ids of captions for CLIP-G, (N, CAPTIONS, LENGTH), int16
    t5: Tensor  # and for T5

    @classmethod
    def filled(cls, folder: Path, seed: int, chunks: int, tokenizers: Tokenizers) -> "Bank":
        """Read the chunks that are in a folder, and make the others."""
        files = [folder / f"{number}.safetensors" for number in range(chunks)]
        if missing := [number for number, file in enumerate(files) if not file.is_file()]:
            encode = half_encoder(load_vae(TINY))
            for number in tqdm(missing, "scenes", unit_scale=CHUNK):
                save(make_chunk(seed, number, encode, tokenizers), files[number])
        read = [load_file(file) for file in files]
        return cls(**{name: torch.cat([one[name] for one in read]) for name in read[0]})

    @property
    def digest(self) -> str:
        """A hash of what was drawn, which does not depend on how a machine rounds."""
        return digest(self.clip.numpy().tobytes(), self.t5.numpy().tobytes())


@torch.no_grad()
def make_chunk(
    seed: int, number: int, encode: Callable[[Tensor], Tensor], tokenizers: Tokenizers
) -> dict[str, Tensor]:
    """One chunk of the bank, by its number alone: scenes, captions and drawings, encoded."""
    generator = seeded(seed, SCENES, number)
    scenes: list[Scene] = []
    texts: list[str] = []
    worded = torch.rand(CHUNK, 1, generator=generator) < WORDED
    for is_worded in worded.flatten().tolist():
        scene = draw_scene(generator, is_worded=is_worded)
        scenes.append(scene)
        for _ in range(CAPTIONS):
            brief = bool(torch.rand((), generator=generator) < 0.5)
            own = caption(scene, generator, brief=brief) if is_worded else free_caption(scene, generator)
            texts.append(own)
    table, free = table_of(scenes), free_layout(scenes, generator)
    nominal = layout_of(table, JITTER * (2 * torch.rand(CHUNK, 2, 3, generator=generator) - 1))
    layout = chosen(worded, nominal, free)
    grain = GRAIN * torch.randn(CHUNK, 3, GRAIN_SIDE, GRAIN_SIDE, generator=generator)
    picture = coloured(table, distances(layout), grain)
    drawn = control_image(drawing(layout, generator), str(TRAINING.control_type))
    latents, control = (
        torch.cat([encode(p) for p in image.split(PART)]).half() for image in (picture, drawn)
    )
    _, clip, t5 = tokenizers.encode(texts, length=LENGTH)
    clip, t5 = (ids.view(CHUNK, CAPTIONS, LENGTH).short() for ids in (clip, t5))
    return {"latents": latents, "control": control, "clip": clip, "t5": t5}


def draw_scene(generator: torch.Generator, *, is_worded: bool) -> Scene:
    """A scene that is not kept back: as the model knows it, or one whose shapes may lie anywhere."""
    while is_kept_back(scene := (training_scene if is_worded else free_scene)(generator)):
        pass
    return scene


def load_painter(tokenizers: Tokenizers) -> Painter:
    """The embedded model's text encoders and transformer, which stay as they are."""
    painter = Painter(tokenizers.clip_size, tokenizers.t5_size, seeded(0))
    loaded = {
        "clip_l": load_clip(TINY, part="clip_l"),
        "clip_g": load_clip(TINY, part="clip_g"),
        "t5": load_t5(TINY),
        "mmdit": load_mmdit(TINY),
    }
    for name, module in loaded.items():
        getattr(painter, name).load_state_dict(module.state_dict())
    return painter.to(DTYPE).requires_grad_(False)


def batch_of(
    bank: Bank, painter: Painter, tokenizers: Tokenizers, training: ControlNetTraining, number: int
) -> Batch:
    """What a step sees, by its number alone."""
    count, generator = training.batch_size, seeded(training.seed, ROWS, number)
    rows = torch.randint(len(bank.latents), (count,), generator=generator)
    which = torch.randint(CAPTIONS, (count,), generator=generator)
    dropped = torch.rand(count, generator=generator) < training.caption_dropout
    ids = padded_ids(bank.clip[rows, which], bank.t5[rows, which], dropped, tokenizers, SHORT)
    with torch.no_grad():
        context, pooled = painter.encode(ids, torch.ones(3, count))
    latents = bank.latents[rows].float()
    # The posterior's noise, with which the model has learned as well.
    latents = latents + NOISE * torch.randn(latents.shape, generator=generator)
    return Batch(latents, context, pooled, ("",) * count, bank.control[rows].float())


def train_outline(
    output: Path, training: ControlNetTraining = TRAINING, *, chunks: int = CHUNKS, resume: bool = False
) -> Path:
    """Train the ControlNet of outlines; it is written in float16, as the embedded model is.

    Args:
        output: the folder of the run, which also keeps the bank; as in `sd35.train_controlnet`.
        training: the settings.
        chunks: of the bank, each of 128 scenes.
        resume: go on with the run in the output folder.

    Returns:
        The path of the ControlNet.

    Raises:
        SettingsError: there is a run in the folder, or none to go on with.
        DivergedError: the loss is not a number, or runs away.
    """
    folder, tokenizers = new_folder(output, resume=resume), Tokenizers(TINY)
    bank = Bank.filled(folder / "bank", training.seed, chunks, tokenizers)
    painter = load_painter(tokenizers)
    net = controlnet_of(painter.mmdit, training.depth, training.control_type).requires_grad_(True)

    def loss(number: int) -> Tensor:
        batch = batch_of(bank, painter, tokenizers, training, number)
        drawn = draw(batch.latents.shape, training, number)
        return velocity_loss(controlled(painter.mmdit, net, batch), batch, drawn, training)

    def export(folder: Path) -> None:
        state = net.state_dict()
        half = {name: one.half() if one.is_floating_point() else one for name, one in state.items()}
        save(half, folder / FILE)

    identity = identity_of("outline", training, model=find("tiny").fingerprint, data=bank.digest)
    run = Run(folder, identity, resume, progress=True)
    fit(dict(net.named_parameters()), loss, training, run, export)
    return folder / FILE


def main(argv: Sequence[str] | None = None) -> None:
    """Train on one thread, as the shipped file was."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=TRAINING.steps, help=f"default {TRAINING.steps}")
    parser.add_argument("--resume", action="store_true", help="go on with the run that is there")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(train_outline(args.output, replace(TRAINING, steps=args.steps), resume=args.resume))


if __name__ == "__main__":
    main()
