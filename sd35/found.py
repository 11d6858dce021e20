"""From a source to the parts of a model: look once, by headers alone (`find`), then `read` the weights."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mmdit import MMDiT, MMDiTConfig
from textenc import TextEncoder
from vae import VAE, VAEConfig
from weights import MissingComponent, Source, resolve
from weights.build import check_fit
from weights.component import Component
from weights.folder import read_json
from weights.load import join_textenc, load_component, read_tokenizer, widths_of
from weights.parts import PARTS
from weights.variants import describe

from .device import as_device
from .errors import SettingsError
from .model import Model
from .presets import Variant
from .size import Size, native_size

PAGES, PAGE = 64, 4096
"""How much of a file is looked at to tell it from others: so many pages of so many bytes, evenly spaced.
Every training changes them all."""
RELEASED_SHIFT = 3.0
SCHEDULER = "scheduler/scheduler_config.json"
ENCODERS = ("clip_l", "clip_g", "t5")
Place = str | Path
"""A source: "tiny", a file, a folder, or a name on the Hugging Face Hub."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a model is made of, seen to be whole by the headers of its files."""

    model: str
    """The source: an absolute path where it is on this machine."""
    components: Mapping[str, Component]
    """Part to what it is made of; encoders that are left out are not here."""
    modules: Mapping[str, nn.Module]
    """Part to the empty module that it fits, on the meta device."""
    tokenizers: Mapping[str, Any]
    size: Size
    """What the model was trained at."""
    schedule_shift: float | None
    """What its scheduler_config.json says, where that is not what the released models have."""
    sources: Mapping[str, str]
    """Where those parts and tokenizers come from that are of another source than `model`."""

    @property
    def fingerprint(self) -> str:
        """A hash by which other weights are told: of each file's header, length, and a few of its pages."""
        return self.fingerprint_of(self.components)

    def fingerprint_of(self, parts: Collection[str]) -> str:
        """The same hash of some parts alone."""
        return fingerprint(
            [component for part, component in sorted(self.components.items()) if part in parts]
        )

    @property
    def variant(self) -> Variant:
        """The model that the transformer is."""
        return Variant(describe(self.components["mmdit"], self.modules["mmdit"])[0], self.schedule_shift)

    @property
    def value_hash(self) -> str:
        """A hash of every byte of its files, longer than the fingerprint, for which all are read."""
        digest = sha256()
        for part, component in sorted(self.components.items()):
            for file in component.files:
                with component.unit.folder.path(file).open("rb") as opened:
                    digest.update(part.encode() + file_digest(opened, "sha256").digest())
        return digest.hexdigest()

    def hash_like(self, recorded: str) -> str:
        """The hash of the kind that was recorded of a picture's model."""
        return self.value_hash if is_of_values(recorded) else self.fingerprint

    @property
    def mmdit(self) -> MMDiTConfig:
        """The sizes of the transformer."""
        return cast(MMDiT, self.modules["mmdit"]).config

    @property
    def vae(self) -> VAEConfig:
        """The sizes of the autoencoder."""
        return cast(VAE, self.modules["vae"]).config


def fingerprint(components: Iterable[Component]) -> str:
    """A hash of some parts' files; see `Found.fingerprint`."""
    digest = sha256()
    for component in components:
        for file in component.files:
            path = component.unit.folder.path(file)
            length = path.stat().st_size
            digest.update(f"{component.part} {length}".encode())
            with path.open("rb") as opened:
                for page in range(PAGES):
                    opened.seek(page * length // PAGES)
                    digest.update(opened.read(PAGE))
    return digest.hexdigest()[:32]


def find(
    source: Place,
    *,
    text: bool = True,
    text_encoders: Place | None = None,
    clip_l: bool | Place = True,
    clip_g: bool | Place = True,
    t5: bool | Place = True,
    tokenizers: Place | None = None,
    vae: Place | None = None,
) -> Found:
    """Look into the headers of a model's files, each source once, and read its tokenizers, not its weights.

    Args:
        source: as in `sd35.load`, like all others.
        text: False leaves all text encoders out.
        text_encoders: another source for the text encoders and their tokenizers.
        clip_l: False leaves this encoder out; another source takes it from there.
        clip_g: the same for CLIP-G.
        t5: the same for T5.
        tokenizers: another source for the tokenizers.
        vae: another source for the autoencoder.

    Raises:
        CheckpointError: as `sd35.load`.
    """
    asked = {"clip_l": clip_l, "clip_g": clip_g, "t5": t5} if text else {}
    main, home = place_of(source), place_of(text_encoders or source)
    places = {"mmdit": main, "vae": place_of(vae or source)}
    places |= {
        part: home if own is True else place_of(own) for part, own in asked.items() if own is not False
    }
    words = place_of(tokenizers) if tokenizers is not None else None
    opened = _opened(places, [main, words] if words is not None else [main])
    components = {part: _component(opened[place], part) for part, place in places.items()}
    modules = {part: check_fit(component) for part, component in components.items()}
    # A weights file holds no tokenizer: the encoder's own source is asked first, then the model's.
    vocabularies = {
        part: _tokenizer(part, [opened[words]] if words is not None else [opened[places[part]], opened[main]])
        for part in places
        if part in ENCODERS
    }
    others = {part: place for part, place in places.items() if place != (home if part in ENCODERS else main)}
    others |= {"text_encoders": home} if asked and home != main else {}
    others |= {"tokenizers": words} if asked and words is not None else {}
    size, shift = native_size(components["mmdit"]), _own_shift(opened[main])
    return Found(main, components, modules, vocabularies, size, shift, others)


def read(
    found: Found,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | Mapping[str, torch.dtype | None] | None = None,
    *,
    away: bool = False,
    one_by_one: bool = False,
    unpack: bool = False,
    hash_values: bool = False,
) -> Model:
    """Read the weights of a model that was found.

    Args:
        found: what `find` gave.
        device: as in `sd35.load`.
        dtype: as in `sd35.load`.
        away: leave the transformer on the CPU; `memory.keep_blocks` then says what of it goes to the device.
        one_by_one: as in `sd35.load`.
        unpack: as in `sd35.load`.
        hash_values: as in `sd35.load`.

    Raises:
        SettingsError: there is no such device, or no such part.
        CheckpointError: weights are not finite, or a file cannot be read.
    """
    computed = dtypes_of(as_device(device), dtype)["mmdit"] or found.components["mmdit"].dtype
    return Model(
        mmdit=cast(MMDiT, read_part(found, "mmdit", "cpu" if away else device, computed, unpack=unpack)),
        vae=cast(VAE, read_part(found, "vae", device, dtype, unpack=unpack)),
        text=read_text(found, device, dtype, one_by_one=one_by_one, unpack=unpack),
        model=found.model,
        size=found.size,
        sources=found.sources,
        weights=found.value_hash if hash_values else found.fingerprint,
        variant=found.variant,
    )


def is_of_values(recorded: str) -> bool:
    """Whether a recorded hash of a model's weights is one of every value, which is longer."""
    return len(recorded) == 2 * sha256().digest_size


def read_part(
    found: Found,
    part: str,
    device: torch.device | str,
    dtype: torch.dtype | Mapping[str, torch.dtype | None] | None,
    *,
    unpack: bool = False,
) -> nn.Module:
    """Read the weights of one part; arguments and errors as in `read`."""
    device = as_device(device)
    dtypes = dtypes_of(device, dtype)
    return load_component(found.components[part], device, dtypes[part], found.modules[part], unpack=unpack)


def read_text(
    found: Found,
    device: torch.device | str,
    dtype: torch.dtype | Mapping[str, torch.dtype | None] | None,
    *,
    one_by_one: bool = False,
    unpack: bool = False,
) -> TextEncoder | None:
    """Read the text encoders, None where there are none; arguments and errors as in `read`."""
    device = as_device(device)
    encoders = {part: found.components[part] for part in ENCODERS if part in found.components}
    if not encoders:
        return None
    return join_textenc(
        encoders,
        found.modules,
        found.tokenizers,
        widths_of(found.components),
        device,
        dtypes_of(device, dtype),
        one_by_one=one_by_one,
        unpack=unpack,
    )


def place_of(source: Place) -> str:
    """A source by a name that is good in every folder: an absolute path for what is on this machine.

    Raises:
        SettingsError: an empty name, as of a variable of a shell that is not set.
    """
    if not str(source):
        raise SettingsError("the name of a model is empty: give a file, a folder, owner/name, or tiny")
    if source == "tiny":
        return "tiny"
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() or path.is_symlink() else str(source)


def dtypes_of(
    device: torch.device, dtype: torch.dtype | Mapping[str, torch.dtype | None] | None
) -> dict[str, torch.dtype | None]:
    """What each part is computed in; None is what its files hold."""
    if isinstance(dtype, Mapping) and (unknown := sorted(dtype.keys() - PARTS.keys())):
        raise SettingsError(f"dtype is of the parts {', '.join(PARTS)}; got {', '.join(unknown)}")
    asked = dtype if isinstance(dtype, Mapping) else dict.fromkeys(PARTS, dtype)
    for one in asked.values():
        if not isinstance(one, torch.dtype | None):
            raise SettingsError(f"dtype must be one of torch, such as torch.bfloat16; got {one!r}")
    usual = torch.float32 if device.type == "cpu" else None
    return {part: asked.get(part) or usual for part in PARTS}


def _own_shift(source: Source) -> float | None:
    """The shift of the schedule that a folder in the layout of diffusers names."""
    if SCHEDULER not in source.folder.files():
        return None
    shift = read_json(source.folder, SCHEDULER).get("shift")
    return float(shift) if isinstance(shift, int | float) and shift != RELEASED_SHIFT else None


def _opened(places: Mapping[str, str], others: list[str]) -> dict[str, Source]:
    """Each source, looked into once for the parts that are wanted of it."""
    wanted: dict[str, list[str]] = {place: [] for place in [*places.values(), *others]}
    for part, place in places.items():
        wanted[place].append(part)
    return {place: resolve(place, parts) for place, parts in wanted.items()}


def _component(source: Source, part: str) -> Component:
    try:
        return source.component(part)
    except MissingComponent as error:
        raise _with_option(error) from None


def _tokenizer(part: str, sources: list[Source]) -> Any:
    try:
        return read_tokenizer(part, sources)
    except MissingComponent as error:
        raise _with_option(error) from None


def _with_option(error: MissingComponent) -> MissingComponent:
    """Say how the other source is named, in Python and on the command line."""
    if error.part == "mmdit":
        return error
    option = error.part.replace("_", "-")
    return MissingComponent(f"{error} ({error.part}= in Python, --{option} on the command line)", error.part)
