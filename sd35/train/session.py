"""What every way of training begins with: the model found, the folder read, pictures and captions encoded."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from tqdm import tqdm

from mmdit import MMDiT
from textenc import TextEncoder
from textenc.tokenizer import CLIP_LENGTH
from vae import VAE
from weights.load import load_component

from ..device import as_device, as_dtype
from ..found import Found, Place, find, read_part, read_text
from .cache import Cache
from .data import Batch, Data, cache_of, prepare, with_control
from .encode import EMPTY, encode_texts, text_key
from .folder import read_folder
from .loop import Run, Watch, new_folder
from .objective import VALIDATION_SIGMAS, Draw, LossOf, Predict, draw, validation_losses
from .samples import draw_pictures, save_samples
from .settings import Training
from .state import identity_of
from .world import World

Result = TypeVar("Result")
Objective = Callable[[Predict, Batch, Draw, Training], Tensor]
"""objective(predict, batch, drawn, training): the loss of a batch, a scalar."""

VALIDATED = 8
"""Pictures of a validation."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a run reads from and writes to, and where it computes.

    Args:
        source: the model, as in `sd35.load`.
        data: the folder of pictures.
        output: the folder of the run, made if it is not there.
        sources: other sources of parts by name, as in `sd35.load`: vae, text_encoders, t5 (False leaves it
            out), ...
        validation_data: pictures to validate with; None takes some of those that are trained on.
        cache: the folder of latents and encodings; None is "cache" in the output.
        resume: go on with the run in the output folder.
        device: as in `sd35.load`.
        dtype: what the network computes in; None is float32 on a CPU and bfloat16 elsewhere.
        progress: tell what is noteworthy on stderr, and show bars where that is a terminal.
    """

    source: Place
    data: str | Path
    output: str | Path
    sources: Mapping[str, Place | bool] | None = None
    validation_data: str | Path | None = None
    cache: str | Path | None = None
    resume: bool = False
    device: torch.device | str = "auto"
    dtype: torch.dtype | str | None = None
    progress: bool = False


class Session:
    """A run that is about to begin: everything is checked and encoded, and the encoders are freed."""

    def __init__(self, places: Places, training: Training, kind: str) -> None:
        """Check, find and encode.

        Raises:
            SettingsError: anything that can be told before the transformer is loaded.
            CheckpointError: the model is not whole.
        """
        self.places, self.training, self.kind = places, training, kind
        device = as_device(places.device)
        self.world = World.here(device)
        self.world.check(training.batch_size)
        self.device = self.world.device(device)
        self.folder = new_folder(Path(places.output), resume=places.resume)
        self.world.wait()  # that none sees what another has begun to write there
        dtype = as_dtype(places.dtype) if isinstance(places.dtype, str) else places.dtype
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        self.found: Found = find(places.source, **cast(Any, dict(places.sources or {})))
        folder = self.folder / "cache" if places.cache is None else Path(places.cache)
        self.cache: Cache = cache_of(folder, self.found, self.dtype)
        prompts = [*training.sample_prompt, EMPTY] if training.sample_prompt else []
        self.in_turn(lambda: encode_texts(self.found, prompts, self.cache, self.device, self.dtype))
        self.data: Data | None = None
        self.validation: list[Batch] = []

    def read_data(self, control: Path | None = None, control_type: str | None = None) -> Data:
        """Read what is trained on and validated with; see `prepare` for control pictures."""
        self.data = self.read(Path(self.places.data), control, control_type)
        if self.training.validate_every is not None:
            held_out = self.places.validation_data
            data = self.data if held_out is None else self.read(Path(held_out), control, control_type)
            self.validation = data.fixed(VALIDATED)
        return self.data

    def read(self, folder: Path, control: Path | None = None, control_type: str | None = None) -> Data:
        """Read a folder and encode what is not in the cache yet."""
        training, progress = self.training, self.places.progress and self.world.is_main
        examples, notes = read_folder(folder, training.caption, skip_unreadable=training.skip_unreadable)
        self.say(*notes)
        if control is not None:
            examples = with_control(examples, folder, control)
        data = self.in_turn(
            lambda: prepare(
                self.found,
                examples,
                training,
                self.cache,
                self.device,
                self.dtype,
                control_type=control_type,
                progress=progress,
            )
        )
        self.say(*data.notes, f"{len(data.samples)} pictures in {folder}")
        return data

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """Let the main process work first, and the others after it, on the files that it left."""
        if not self.world.is_main:
            self.world.wait()
        result = work()
        if self.world.is_main:
            self.world.wait()
        return result

    def loss_of(self, objective: Objective, data: Data | None = None, apart: int = 0) -> LossOf:
        """What one process learns of the batch of a number: the objective on its rows.

        Args:
            objective: `velocity_loss`, or another of its form.
            data: None takes the folder that is trained on.
            apart: added to the number of the batch where its noise is drawn.
        """

        def loss_of(predict: Predict, text: TextEncoder | None, number: int) -> Tensor:
            source = self.data if data is None else data
            assert source is not None
            batch = source.batch(number)
            drawn = draw(batch.latents.shape, self.training, number + apart)
            where = self.device, torch.promote_types(self.dtype, torch.float32)
            batch = read_anew(text, mine(self.world, batch)).to(*where)
            drawn = Draw(self.world.rows(drawn.noise), self.world.rows(drawn.sigma)).to(*where)
            return objective(predict, batch, drawn, self.training)

        return loss_of

    @property
    def largest(self) -> tuple[int, int, int]:
        """Of what is learned from: width, height and tokens of the largest."""
        if self.data is None:
            return (*self.size, 154)
        return max(((*one.size, one.tokens) for one in self.data.samples), key=lambda one: one[0] * one[1])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of pictures that are drawn on the way."""
        side = self.training.resolution
        return (side, side) if side else (self.found.size.width, self.found.size.height)

    def say(self, *lines: str) -> None:
        """Tell the user something, above the bars."""
        for line in lines if self.places.progress and self.world.is_main else ():
            tqdm.write(line, file=sys.stderr)

    def transformer(self, *, mapped: bool = False) -> MMDiT:
        """Load the transformer; or map its tensors from the file, to be read when they are needed."""
        if mapped:
            return cast(MMDiT, load_component(self.found.components["mmdit"]))
        return cast(MMDiT, read_part(self.found, "mmdit", self.device, self.dtype))

    def autoencoder(self) -> VAE:
        """Load the autoencoder."""
        return cast(VAE, read_part(self.found, "vae", self.device, self.dtype))

    def clips(self) -> TextEncoder | None:
        """Load the CLIP encoders, without T5."""
        parts = {part: one for part, one in self.found.components.items() if part != "t5"}
        return read_text(replace(self.found, components=parts), self.device, self.dtype)

    def bare_run(self, watch: Watch | None = None, **made_of: str) -> Run:
        """What the loop needs to know.

        Args:
            watch: what is looked at on the way.
            made_of: hashes of what the weights depend on, beside the model.
        """
        identity = identity_of(self.kind, self.training, model=self.found.fingerprint, **made_of)
        places = self.places
        return Run(self.folder, identity, places.resume, places.progress, watch or Watch(), self.world)

    def run(
        self,
        mmdit: MMDiT,
        text: TextEncoder | None = None,
        *,
        predict_of: Callable[[Batch], Predict] | None = None,
        made_of: Mapping[str, str] | None = None,
    ) -> Run:
        """The same of a flow, with validation and samples where they are asked for.

        Args:
            mmdit: the transformer.
            text: CLIP encoders that are trained as well.
            predict_of: the network for a batch; None takes the transformer.
            made_of: as in `bare_run`.
        """

        def validate() -> Mapping[float, float]:
            with torch.no_grad():
                batches = [read_anew(text, batch).to(self.device) for batch in self.validation]
            return validation_losses(predict_of or (lambda _: mmdit), batches)

        watch = Watch(
            validate if self.validation else None,
            self._sampler(mmdit, text) if self.training.sample_prompt else None,
            VALIDATION_SIGMAS if self.validation else (),
        )
        data = {} if self.data is None else {"data": self.data.digest}
        return self.bare_run(watch, **data, **(made_of or {}))

    def _sampler(self, mmdit: MMDiT, text: TextEncoder | None) -> Callable[[int], None]:
        """What draws the pictures of `sample_prompt` after so many steps."""
        vae, prompts = self.autoencoder(), self.training.sample_prompt

        def sample(step: int) -> None:
            images = draw_pictures(
                mmdit, vae, lambda one: self.encode(one, text), prompts, self.size, range(len(prompts))
            )
            if self.world.is_main:
                save_samples(images, self.folder / "samples", step)

        return sample

    def encode(self, caption: str, text: TextEncoder | None = None) -> tuple[Tensor, Tensor]:
        """Context and pooled text of a caption that is in the cache."""
        kept = self.cache.read(text_key(caption))
        batch = Batch(torch.empty(0), kept["context"], kept["pooled"], (caption,))
        batch = read_anew(text, batch).to(self.device)
        return batch.context, batch.pooled


def mine(world: World, batch: Batch) -> Batch:
    """The rows of a batch that are this process's."""
    control = None if batch.control is None else world.rows(batch.control)
    latents, context, pooled = (world.rows(tensor) for tensor in batch[:3])
    return Batch(latents, context, pooled, batch.captions[world.rank :: world.size], control)


def read_anew(text: TextEncoder | None, batch: Batch) -> Batch:
    """A batch with what CLIP encoders that are trained say now; T5's tokens are those of the cache."""
    if text is None:
        return batch
    now = text.encode(batch.captions, missing="drop")
    t5 = batch.context[:, CLIP_LENGTH:].to(now.context)
    return batch._replace(context=torch.cat([now.context, t5], dim=1), pooled=now.pooled)
