"""What every way of training begins with: the model found, the folder read, pictures and captions encoded."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from mmdit import MMDiT
from textenc import TextEncoder
from textenc.tokenizer import CLIP_LENGTH
from vae import VAE

from ..device import as_device, as_dtype
from ..found import Found, Place, find, read_part, read_text
from .cache import Cache
from .data import EMPTY, Batch, Data, cache_of, encode_texts, prepare, text_key
from .folder import read_folder
from .loop import Run, Watch, new_folder
from .objective import VALIDATION_SIGMAS, Predict, validation_losses
from .samples import draw_pictures, save_samples
from .settings import Training
from .state import identity_of

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
        progress: show bars, and what is noteworthy, on stderr.
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
        self.folder = new_folder(Path(places.output), resume=places.resume)
        self.device = as_device(places.device)
        dtype = as_dtype(places.dtype) if isinstance(places.dtype, str) else places.dtype
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        self.found: Found = find(places.source, **cast(Any, dict(places.sources or {})))
        folder = self.folder / "cache" if places.cache is None else Path(places.cache)
        self.cache: Cache = cache_of(folder, self.found, self.dtype)
        self.data = self.read(Path(places.data), training)
        held_out = places.validation_data
        self.validation = (
            []
            if training.validate_every is None
            else (self.data if held_out is None else self.read(Path(held_out), training)).fixed(VALIDATED)
        )
        prompts = [*training.sample_prompt, EMPTY] if training.sample_prompt else []
        encode_texts(self.found, prompts, self.cache, self.device, self.dtype)

    def read(self, folder: Path, training: Training) -> Data:
        """Read a folder and encode what is not in the cache yet."""
        examples, notes = read_folder(folder, training.caption, skip_unreadable=training.skip_unreadable)
        self.say(*notes, f"{len(examples)} pictures in {folder}")
        return prepare(
            self.found, examples, training, self.cache, self.device, self.dtype, progress=self.places.progress
        )

    def say(self, *lines: str) -> None:
        """Tell the user something, above the bars."""
        for line in lines if self.places.progress else ():
            tqdm.write(line, file=sys.stderr)

    def transformer(self) -> MMDiT:
        """Load the transformer."""
        return cast(MMDiT, read_part(self.found, "mmdit", self.device, self.dtype))

    def autoencoder(self) -> VAE:
        """Load the autoencoder."""
        return cast(VAE, read_part(self.found, "vae", self.device, self.dtype))

    def clips(self) -> TextEncoder | None:
        """Load the CLIP encoders, without T5."""
        parts = {part: one for part, one in self.found.components.items() if part != "t5"}
        return read_text(replace(self.found, components=parts), self.device, self.dtype)

    def run(self, predict: Predict, mmdit: MMDiT, text: TextEncoder | None = None, **made_of: str) -> Run:
        """What the loop needs to know, with validation and samples where they are asked for.

        Args:
            predict: the network, as it is trained.
            mmdit: the transformer that samples are drawn with.
            text: CLIP encoders that are trained as well.
            made_of: other hashes of what the weights depend on.
        """
        training = self.training
        identity = identity_of(
            self.kind, training, model=self.found.fingerprint, data=self.data.digest, **made_of
        )

        def validate() -> Mapping[float, float]:
            with torch.no_grad():
                batches = [read_anew(text, batch) for batch in self.validation]
            return validation_losses(predict, batches, self.device)

        watch = Watch(
            validate if self.validation else None,
            self._sampler(mmdit, text) if training.sample_prompt else None,
            VALIDATION_SIGMAS if self.validation else (),
        )
        return Run(self.folder, identity, self.places.resume, self.places.progress, watch)

    def _sampler(self, mmdit: MMDiT, text: TextEncoder | None) -> Callable[[int], None]:
        """What draws the pictures of `sample_prompt` after so many steps."""
        vae, prompts = self.autoencoder(), self.training.sample_prompt
        side = self.training.resolution
        size = (side, side) if side else (self.found.size.width, self.found.size.height)

        def encode(caption: str) -> tuple[Tensor, Tensor]:
            kept = self.cache.read(text_key(caption))
            batch = Batch(torch.empty(0), kept["context"], kept["pooled"], (caption,))
            batch = read_anew(text, batch)
            return batch.context.to(self.device), batch.pooled.to(self.device)

        def sample(step: int) -> None:
            images = draw_pictures(mmdit, vae, encode, prompts, size, range(len(prompts)))
            save_samples(images, self.folder / "samples", step)

        return sample


def read_anew(text: TextEncoder | None, batch: Batch) -> Batch:
    """A batch with what CLIP encoders that are trained say now; T5's tokens are those of the cache."""
    if text is None:
        return batch
    now = text.encode(batch.captions, missing="drop")
    t5 = batch.context[:, CLIP_LENGTH:].to(now.context)
    return batch._replace(context=torch.cat([now.context, t5], dim=1), pooled=now.pooled)
