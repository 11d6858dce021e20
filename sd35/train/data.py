"""What a step learns from: latents and encodings of a folder's pictures, computed once, in batches.

A batch is a function of the seed and of its number alone, so that a run that is resumed, or that is shared
by several processes, sees what it would have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor
from tqdm import tqdm

from textenc import TextEncoder
from vae import VAE
from vae.image import read

from ..errors import SettingsError, check_finite
from ..found import Found, read_part, read_text
from ..noise import seeded
from ..size import check_size
from .buckets import batches, bucket_sizes, fitted, nearest
from .cache import Cache, digest
from .folder import Example
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


@dataclass(frozen=True)
class Sample:
    """One picture, by its keys in the cache."""

    example: Example
    size: tuple[int, int]
    latents: tuple[str, ...]
    """As it is, and mirrored where that is asked for."""
    text: str
    empty: str
    """The empty text, as many tokens long."""
    tokens: int


class Data:
    """The batches of a folder; `prepare` makes it."""

    def __init__(self, cache: Cache, samples: Sequence[Sample], training: Training) -> None:
        self.cache, self.samples, self.training = cache, tuple(samples), training
        self._groups = [(sample.size, sample.tokens) for sample in self.samples]
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def digest(self) -> str:
        """A hash of pictures, sizes and captions."""
        return digest(*(f"{sample.latents}{sample.text}" for sample in self.samples))

    def batch(self, number: int) -> Batch:
        """The batch of a number, 0 being the first of the first epoch."""
        size, seed = self.training.batch_size, self.training.seed
        per_epoch = len(self._order(0, size, seed))
        epoch, place = divmod(number, per_epoch)
        chosen = [self.samples[index] for index in self._order(epoch, size, seed)[place]]
        chance = torch.rand(2, size, generator=seeded(seed, CHANCE, number)).tolist()
        latents = [
            self.cache.read(sample.latents[1 if mirrored < 0.5 and len(sample.latents) > 1 else 0])["latents"]
            for sample, mirrored in zip(chosen, chance[1], strict=True)
        ]
        dropped = [one < self.training.caption_dropout for one in chance[0]]
        texts = [
            self.cache.read(sample.empty if drop else sample.text)
            for sample, drop in zip(chosen, dropped, strict=True)
        ]
        return Batch(
            torch.cat(latents).float(),
            torch.cat([text["context"] for text in texts]),
            torch.cat([text["pooled"] for text in texts]),
            tuple(EMPTY if drop else s.example.caption for s, drop in zip(chosen, dropped, strict=True)),
        )

    def fixed(self, count: int) -> list[Batch]:
        """The first pictures, one by one, as they are: for validation."""
        found = []
        for sample in self.samples[:count]:
            text = self.cache.read(sample.text)
            latents = self.cache.read(sample.latents[0])["latents"].float()
            found.append(Batch(latents, text["context"], text["pooled"], (sample.example.caption,)))
        return found

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
        progress: show bars on stderr.

    Raises:
        SettingsError: a picture cannot be read, a size that the model does not draw, or a bad cache.
    """
    samples = _placed(found, examples, training)
    _encode_pictures(found, samples, cache, device, dtype, progress=progress)
    captions = [sample.example.caption for sample in samples]
    tokens = encode_texts(found, captions, cache, device, dtype, progress=progress)
    return Data(
        cache,
        [
            Sample(s.example, s.size, s.latents, text_key(s.example.caption), empty_key(n), n)
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


def _placed(found: Found, examples: Sequence[Example], training: Training) -> list[Sample]:
    """Each picture's size and keys."""
    side = training.resolution or min(found.size)
    check_size(side, side, found.mmdit, found.vae)
    multiple = found.vae.factor * found.mmdit.patch_size
    longest = multiple * found.mmdit.pos_embed_size
    sizes = bucket_sizes(side, multiple=multiple, longest=longest) if training.buckets else [(side, side)]
    placed = []
    for example in examples:
        size = nearest(example.size, sizes)
        name = f"latents/{digest(example.path.read_bytes())}-{size[0]}x{size[1]}"
        keys = (name, name + MIRRORED) if training.flip else (name,)
        placed.append(Sample(example, size, keys, "", "", 0))
    return placed


def _encode_pictures(
    found: Found,
    samples: Sequence[Sample],
    cache: Cache,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    progress: bool,
) -> None:
    """Fill the cache with the mean latents of pictures."""
    keys = {key: sample for sample in samples for key in sample.latents}
    missing = [key for key in keys if not cache.has(key)]
    for key in keys.keys() - set(missing):
        cache.read(key)
    if not missing:
        return
    vae = cast(VAE, read_part(found, "vae", device, dtype))

    def encode(key: str) -> dict[str, Tensor]:
        image = fitted(_read(keys[key].example), keys[key].size)
        image = image.flip(3) if key.endswith(MIRRORED) else image
        with torch.no_grad():
            latents = vae.encode(image.to(device))
        return {"latents": check_finite(latents, "autoencoder (encoding)", latents.dtype)}

    for key in tqdm(missing, "pictures", disable=not progress):
        cache.kept(key, lambda key=key: encode(key))


def _read(example: Example) -> Tensor:
    try:
        return read(example.path)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{example.path} is damaged ({error}): mend or remove it") from error


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
