"""What a step learns from: latents and encodings of a folder's pictures, computed once, in batches.

A batch is a function of the seed and of its number alone, so that a run that is resumed, or that is shared
by several processes, sees what it would have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SettingsError
from ..found import Found
from ..noise import seeded
from ..size import check_size
from .buckets import batches, bucket_sizes, nearest
from .cache import Cache, digest
from .encode import EMPTY, MIRRORED, empty_key, encode_pictures, encode_texts, read_whole, text_key
from .folder import PICTURES, Example
from .settings import Training

ORDER, CHANCE = 1, 2
"""What numbers are drawn for, beside the number of the batch."""


class Batch(NamedTuple):
    """Some pictures of one size, with their texts."""

    latents: Tensor
    """(B, 16, h, w), float32 on the CPU."""
    context: Tensor
    """(B, M, 4096)."""
    pooled: Tensor
    """(B, 2048)."""
    captions: tuple[str, ...]
    """Empty where one was dropped."""
    control: Tensor | None = None
    """Latents of control pictures, shaped as the latents."""

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Batch":
        """The same on a device, with latents in this dtype."""
        control = None if self.control is None else self.control.to(device, dtype)
        context, pooled = self.context.to(device), self.pooled.to(device)
        return Batch(self.latents.to(device, dtype), context, pooled, self.captions, control)


@dataclass(frozen=True)
class Sample:
    """One picture, by its keys in the cache."""

    example: Example
    size: tuple[int, int]
    latents: tuple[str, ...]
    """As it is, and mirrored where that is asked for."""
    control: tuple[str, ...] = ()
    """Of the control picture, likewise."""
    text: str = ""
    empty: str = ""
    """The empty text, as many tokens long."""
    tokens: int = 0


class Data:
    """The batches of a folder; `prepare` makes it."""

    def __init__(
        self, cache: Cache, samples: Sequence[Sample], training: Training, notes: Sequence[str] = ()
    ) -> None:
        self.cache, self.samples, self.training = cache, tuple(samples), training
        self.notes = tuple(notes)  # on what was left out
        self._groups = [(sample.size, sample.tokens) for sample in self.samples]
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def digest(self) -> str:
        """A hash of pictures, sizes and captions."""
        return digest(*(f"{one.latents}{one.control}{one.text}" for one in self.samples))

    def batch(self, number: int) -> Batch:
        """The batch of a number, 0 being the first of the first epoch."""
        size, seed = self.training.batch_size, self.training.seed
        per_epoch = len(self._order(0, size, seed))
        epoch, place = divmod(number, per_epoch)
        chosen = [self.samples[index] for index in self._order(epoch, size, seed)[place]]
        chance = torch.rand(2, size, generator=seeded(seed, CHANCE, number)).tolist()
        mirrored = [1 if one < 0.5 and self.training.flip else 0 for one in chance[1]]
        keys = [sample.latents[which] for sample, which in zip(chosen, mirrored, strict=True)]
        control = [s.control[which] for s, which in zip(chosen, mirrored, strict=True) if s.control]
        dropped = [one < self.training.caption_dropout for one in chance[0]]
        texts = [
            self.cache.read(sample.empty if drop else sample.text)
            for sample, drop in zip(chosen, dropped, strict=True)
        ]
        return Batch(
            self._latents(keys),
            torch.cat([text["context"] for text in texts]),
            torch.cat([text["pooled"] for text in texts]),
            tuple(EMPTY if drop else s.example.caption for s, drop in zip(chosen, dropped, strict=True)),
            self._latents(control) if control else None,
        )

    def fixed(self, count: int) -> list[Batch]:
        """The first pictures, one by one, as they are: for validation."""
        found = []
        for sample in self.samples[:count]:
            text = self.cache.read(sample.text)
            control = self._latents(sample.control[:1]) if sample.control else None
            latents, caption = self._latents(sample.latents[:1]), (sample.example.caption,)
            found.append(Batch(latents, text["context"], text["pooled"], caption, control))
        return found

    def _latents(self, keys: Sequence[str]) -> Tensor:
        """Of these keys, one after the other."""
        return torch.cat([self.cache.read(key)["latents"] for key in keys]).float()

    def _order(self, epoch: int, size: int, seed: int) -> list[list[int]]:
        if self._epoch[0] != epoch:
            self._epoch = epoch, batches(self._groups, size, seeded(seed, ORDER, epoch))
        return self._epoch[1]


def cache_of(folder: Path, found: Found, dtype: torch.dtype | None) -> Cache:
    """The cache of what a model's autoencoder and text encoders make, in the dtype that they compute in."""
    parts = found.components.keys() - {"mmdit"}
    return Cache(folder, digest(found.fingerprint_of(parts), *sorted(parts), str(dtype)))


def prepare(
    found: Found,
    examples: Sequence[Example],
    training: Training,
    cache: Cache,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    control_type: str | None = None,
    progress: bool = False,
) -> Data:
    """Encode pictures and captions that are not in the cache yet; the encoders are freed at the end.

    Args:
        found: the model, of which the transformer is not needed.
        examples: what `read_folder` gave.
        training: says the sizes.
        cache: where to.
        device: where the encoders run.
        dtype: what they compute in; None as in `sd35.load`.
        control_type: what control pictures show, see `control_image`; None encodes them as they are.
        progress: show bars on stderr.

    Raises:
        SettingsError: a picture cannot be read, a size that the model does not draw, or a bad cache.
    """
    placed = _placed(found, examples, training, control_type)
    samples, notes = _whole(placed, cache, skip_unreadable=training.skip_unreadable)
    wanted = {key: (s.example.path, s.size, None) for s in samples for key in s.latents}
    wanted |= {
        key: (s.example.control, s.size, control_type)
        for s in samples
        for key in s.control
        if s.example.control is not None
    }
    encode_pictures(found, wanted, cache, device, dtype, progress=progress)
    captions = [sample.example.caption for sample in samples]
    tokens = encode_texts(found, captions, cache, device, dtype, progress=progress)
    return Data(
        cache,
        [
            replace(s, text=text_key(s.example.caption), empty=empty_key(n), tokens=n)
            for s, n in zip(samples, tokens, strict=True)
        ],
        training,
        notes,
    )


def with_control(examples: Sequence[Example], folder: Path, control: Path) -> list[Example]:
    """Give each picture the control picture of the same name in another folder.

    Raises:
        SettingsError: there is none.
    """
    found = []
    for example in examples:
        name = example.path.relative_to(folder)
        paths = [control / name.with_suffix(suffix) for suffix in (name.suffix, *PICTURES)]
        path = next((one for one in paths if one.is_file()), None)
        if path is None:
            raise SettingsError(f"there is no control picture {paths[0]} to {example.path}")
        found.append(replace(example, control=path))
    return found


def _placed(
    found: Found, examples: Sequence[Example], training: Training, control_type: str | None
) -> list[Sample]:
    """Each picture's size and keys."""
    side = training.resolution or min(found.size)
    check_size(side, side, found.mmdit, found.vae)
    multiple = found.vae.factor * found.mmdit.patch_size
    longest = multiple * found.mmdit.pos_embed_size
    sizes = bucket_sizes(side, multiple=multiple, longest=longest) if training.buckets else [(side, side)]
    placed = []
    for example in examples:
        size = nearest(example.size, sizes)
        names = [f"latents/{digest(example.path.read_bytes())}-{size[0]}x{size[1]}"]
        if example.control is not None:
            kind = control_type or "plain"
            names.append(f"control/{digest(example.control.read_bytes())}-{kind}-{size[0]}x{size[1]}")
        keys = [(name, name + MIRRORED) if training.flip else (name,) for name in names]
        placed.append(Sample(example, size, keys[0], keys[1] if len(keys) > 1 else ()))
    return placed


def _whole(
    samples: Sequence[Sample], cache: Cache, *, skip_unreadable: bool
) -> tuple[list[Sample], list[str]]:
    """The samples whose pictures can be read to their ends, of those that are not in the cache; and notes."""
    kept, notes = [], []
    for sample in samples:
        new = [key for key in (*sample.latents, *sample.control) if not cache.has(key)]
        try:
            for path in (sample.example.path, sample.example.control) if new else ():
                if path is not None:
                    read_whole(path)
        except SettingsError as error:
            if not skip_unreadable:
                raise SettingsError(f"{error}: mend or remove it, or skip such (skip_unreadable)") from error
            notes.append(f"left out: {error}")
            continue
        kept.append(sample)
    if not kept:
        raise SettingsError(f"no picture can be read, {notes[0]}")
    return kept, notes
