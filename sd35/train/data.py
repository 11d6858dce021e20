"""What a step learns from: latents and encodings of a folder's pictures, computed once, in batches.

A batch is a function of the seed and of its number alone, so that a run that is resumed, or that is shared
by several processes, sees what it would have seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor
from tqdm import tqdm

from textenc import TextEncoder
from vae import VAE
from vae.image import read

from ..adapters.control import control_image
from ..errors import SettingsError, check_finite
from ..found import Found, read_part, read_text
from ..noise import seeded
from ..size import check_size
from .buckets import batches, bucket_sizes, fitted, nearest
from .cache import Cache, digest
from .folder import PICTURES, Example
from .settings import Training

ORDER, CHANCE = 1, 2
"""What numbers are drawn for, beside the number of the batch."""
EMPTY, MIRRORED = "", "-mirrored"


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

    def __init__(self, cache: Cache, samples: Sequence[Sample], training: Training) -> None:
        self.cache, self.samples, self.training = cache, tuple(samples), training
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
    samples = _placed(found, examples, training, control_type)
    wanted = {key: (s.example.path, s.size, None) for s in samples for key in s.latents}
    wanted |= {
        key: (s.example.control, s.size, control_type)
        for s in samples
        for key in s.control
        if s.example.control is not None
    }
    _encode_pictures(found, wanted, cache, device, dtype, progress=progress)
    captions = [sample.example.caption for sample in samples]
    tokens = encode_texts(found, captions, cache, device, dtype, progress=progress)
    return Data(
        cache,
        [
            replace(s, text=text_key(s.example.caption), empty=empty_key(n), tokens=n)
            for s, n in zip(samples, tokens, strict=True)
        ],
        training,
    )


def text_key(caption: str) -> str:
    """Where the encoding of a caption is kept."""
    return f"texts/{digest(caption)}"


def empty_key(tokens: int) -> str:
    """Where that of the empty text is kept, padded to so many tokens."""
    return f"texts/empty-{tokens}"


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


def _encode_pictures(
    found: Found,
    wanted: Mapping[str, tuple[Path, tuple[int, int], str | None]],
    cache: Cache,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    progress: bool,
) -> None:
    """Fill the cache with the mean latents of pictures: key to path, size, and what it shows for control."""
    missing = [key for key in wanted if not cache.has(key)]
    for key in wanted.keys() - set(missing):
        cache.read(key)
    if not missing:
        return
    vae = cast(VAE, read_part(found, "vae", device, dtype))

    def encode(key: str) -> dict[str, Tensor]:
        path, size, control_type = wanted[key]
        image = fitted(_read(path), size)
        image = image if control_type is None else control_image(image, control_type)
        image = image.flip(3) if key.endswith(MIRRORED) else image
        with torch.no_grad():
            latents = vae.encode(image.to(device))
        return {"latents": check_finite(latents, "autoencoder (encoding)", latents.dtype)}

    for key in tqdm(missing, "pictures", disable=not progress):
        cache.kept(key, lambda key=key: encode(key))


def _read(path: Path) -> Tensor:
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} is damaged ({error}): mend or remove it") from error


def encode_texts(
    found: Found,
    captions: Sequence[str],
    cache: Cache,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    progress: bool = False,
) -> list[int]:
    """Fill the cache with the encodings of texts, each encoded alone, and of the empty text for dropping.

    Returns:
        The number of tokens of each.
    """
    text: TextEncoder | None = None

    def encode(*texts: str) -> dict[str, Tensor]:
        nonlocal text
        text = text or read_text(found, device, dtype)
        if text is None:
            raise SettingsError("this model has no text encoders, and the captions are not in the cache yet")
        with torch.no_grad():
            encoding = text.encode(texts).select(0)
        for tensor in (encoding.context, encoding.pooled):
            check_finite(tensor, "text encoders", tensor.dtype)
        return {"context": encoding.context, "pooled": encoding.pooled}

    tokens: dict[str, int] = {}
    for caption in tqdm(dict.fromkeys(captions), "captions", disable=not progress):
        key = cache.kept(text_key(caption), lambda caption=caption: encode(caption))
        tokens[caption] = count = cache.read(key)["context"].shape[1]
        # T5's pads are read like text: the empty text is padded to the length of those that it stands for.
        cache.kept(empty_key(count), lambda caption=caption: encode(EMPTY, caption))
    return [tokens[caption] for caption in captions]
