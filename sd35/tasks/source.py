"""What is given to be inverted or edited, what it tells of how it was made, and whether the two fit."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from flow import Closeness, Companion

from .. import fields
from ..errors import SettingsError
from ..fitting import fitted, nearest_size
from ..images import Picture, as_image
from ..model import Model
from ..opening import open_pictures
from ..presets import Variant, usual_numbers
from ..saved.png import read_kept, read_settings
from ..saved.state import State
from ..schedules import made_for_another
from ..settings import NOT_TAKEN, Settings, settings_of
from ..units import LATENT, SIZE_UNIT
from .inputs import Inputs, take_inputs

Data: TypeAlias = Picture | State
"""Pictures, latents (B, 16, h, w), a saved state, or the path of a picture or of a state."""

ENCODERS = ("t5", "text_encoders_source", "clip_l_source", "clip_g_source", "t5_source", "weights")
"""What a picture was made with that decides where a solver goes, beside the model."""


@dataclass(frozen=True)
class Source:
    """Pictures or latents, and what is known of the generation that they came from."""

    image: Tensor | None
    """(B, 3, H, W) in [-1, 1], or None."""
    latents: Tensor | None
    """(B, 16, h, w), or None."""
    saved: Settings | None = None
    companion: Companion | None = None
    noise: Tensor | None = None
    name: str = "this picture"
    notes: tuple[str, ...] = ()
    """What was changed to read it, and what of its own generation is not taken."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = (side * (LATENT if self.image is None else 1) for side in self.data.shape[2:])
        return width, height

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self.data)

    @property
    def data(self) -> Tensor:
        """The image, or the latents where there is none."""
        data = self.latents if self.image is None else self.image
        assert data is not None
        return data


def open_source(data: Data, given: Mapping[str, Any] | None = None) -> Source:
    """Tell pictures from latents, read what files hold, and see that the size is one that is drawn.

    Args:
        data: as a user has it.
        given: settings by name, of which `fit`, `width` and `height` bring a picture to a size.

    Raises:
        OSError: there is no such file.
        SettingsError: a state without latents, a size that no generation has, or neither picture nor latents.
    """
    given = given or {}
    if isinstance(data, str | Path):
        return _drawn_from_noise(_read(Path(data), given))
    if isinstance(data, State):
        if data.latents is None:
            raise SettingsError("this state holds noise and no latents: there is nothing to invert")
        return _drawn_from_noise(
            Source(None, data.latents, data.settings, data.companion, data.noise, "this state")
        )
    if isinstance(data, np.ndarray) and data.ndim == 4:
        data = torch.from_numpy(data)
    if isinstance(data, Tensor):
        if data.ndim != 4 or not data.is_floating_point() or not data.numel():
            raise SettingsError(
                f"expected pictures (B, 3, H, W) or latents (B, 16, h, w), got {data.dtype} "
                f"{tuple(data.shape)}"
            )
        if data.shape[1] != 3:
            _check_sides(data, LATENT)
            return Source(None, data, name="these latents")
    return _sized(data, given, "this picture")


def _sized(data: Any, given: Mapping[str, Any], name: str) -> Source:
    """Pictures, brought to a size where that is asked for."""
    opened = open_pictures(data, name)
    image = torch.cat([one.data for one in opened]) if isinstance(data, str | Path) else as_image(data)
    notes = tuple(dict.fromkeys(note for one in opened for note in one.notes))
    if (how := given.get("fit")) is not None:
        width, height = nearest_size(image)
        width, height = given.get("width") or width, given.get("height") or height
        own = f"{image.shape[3]} x {image.shape[2]}"
        notes = (*notes, f"{name}: brought from {own} to {width} x {height} ({how})")
        image = fitted(image.float().cpu(), width, height, how)
    _check_sides(image)
    return Source(image, None, name=name, notes=notes)


def _drawn_from_noise(source: Source) -> Source:
    """What a generation from an image came from is not asked for: a way from noise alone is."""
    if source.saved is not None and source.saved.cache != "none":
        note = (
            f"{source.name} was drawn with a cache, which no inverse follows: the noise that is found is "
            "what would draw it without, near the one that it came from"
        )
        saved = replace(source.saved, cache="none", cache_threshold=None)
        source = replace(source, saved=saved, notes=(*source.notes, note))
    if source.saved is None or not source.saved.image:
        return source
    note = (
        f"{source.name} was drawn from another picture: the noise that is found is what would draw it from "
        "noise alone, and not the noise that was put on that one"
    )
    saved = source.saved.without_image()
    return replace(source, saved=saved, companion=None, noise=None, notes=(*source.notes, note))


def _read(path: Path, given: Mapping[str, Any]) -> Source:
    if path.suffix == ".safetensors":
        state = State.load(path)
        if state.latents is None:
            raise SettingsError(f"{path} holds noise and no latents: there is nothing to invert")
        return replace(open_source(state), name=str(path))
    source = _sized(path, given, str(path))
    try:
        saved = read_settings(path)
    except SettingsError:  # a picture from elsewhere: whoever asks has to tell
        saved = None
    if saved is None:
        return source
    kept, note = read_kept(path, source.data)
    if kept is not None:
        return replace(open_source(kept), name=str(path))
    return replace(source, saved=saved, notes=source.notes if note is None else (*source.notes, note))


def _check_sides(data: Tensor, factor: int = 1) -> None:
    height, width = (factor * side for side in data.shape[2:])
    if height % SIZE_UNIT or width % SIZE_UNIT:
        raise SettingsError(
            f"a picture of {width} x {height} is none of this model's: its sides must be multiples of "
            f"{SIZE_UNIT}. --fit crop, pad or stretch (fit=) brings it to one, but no generation ended there"
        )


def open_with_inputs(data: Data, given: dict[str, Any]) -> tuple[Source, dict[str, Any], Inputs]:
    """A source, and the ControlNets of its generation or those that are given.

    Args:
        data: as a user has it.
        given: settings of a generation by name.

    Returns:
        The source; `given` with records in place of the pictures of ControlNets; and those pictures.

    Raises:
        OSError: there is no such file.
        SettingsError: as `open_source` and `take_inputs`; or a size is given, and nothing is to be brought to
            it.
    """
    source = open_source(data, given)
    width, height = source.size
    fit = given.get("fit")
    if fit is None and (named := [name for name in ("width", "height") if given.get(name) is not None]):
        raise fields.fault(Settings, named, ": that is told by the picture itself; leave it out, or give fit")
    taken, inputs = take_inputs({**given, "width": width, "height": height}, source.saved)
    left_out = ("width", "height") if inputs.controls else ("width", "height", "fit")
    return source, {name: value for name, value in taken.items() if name not in left_out}, inputs


OF_DRAWING = ("solver", "steps")
"""Of a model's own numbers, those that say how pictures are drawn of its flow, and not which flow that is."""


def source_settings(
    source: Source, given: dict[str, Any], *, variant: Variant
) -> tuple[Settings, tuple[str, ...]]:
    """The settings that a source was made with: its own, except what is given.

    Where it carries none, the flow is that of the model's own numbers, as for a generation; followed by
    Euler's method, the one that an inverse is sought for.

    Args:
        source: what is there.
        given: settings of a generation by name.
        variant: of the model, as in `Generate.of`.

    Returns:
        The settings, and what a user should know of them.

    Raises:
        SettingsError: nothing tells the prompt; a setting that the source decides by itself; settings of
            another size or number; and as `settings_of`.
    """
    if taken := [name for name in NOT_TAKEN if name in given]:
        raise fields.fault(Settings, taken, ": that is told by the picture itself; leave it out")
    notes: tuple[str, ...] = ()
    if source.saved is not None:
        settings = settings_of(given, source.saved)
    elif "prompts" in given:
        given = {"solver": "euler"} | given  # which a file of levels would else decide
        numbers, notes = usual_numbers(given, variant, but=OF_DRAWING)
        notes += made_for_another(given)
        settings = settings_of({"seed": None, **given}, None, numbers)
        if len(settings.prompts) == 1:
            settings = replace(settings, images_per_prompt=source.count)
    else:
        raise SettingsError(
            f"{source.name}: which prompt was it drawn from? Give it (to sd35 edit as --source-prompt); "
            "only what was saved here carries its settings"
        )
    width, height = source.size
    if (settings.width or width, settings.height or height) != (width, height):
        raise SettingsError(
            f"the settings are those of {settings.width} x {settings.height}, and this has {width} x {height}"
        )
    if source.count != settings.images:
        raise SettingsError(f"the settings are those of {settings.images} pictures, got {source.count}")
    return replace(settings, width=width, height=height), notes


def settings_for(model: Model, source: Source, settings: Settings) -> Settings:
    """The settings of a source, complete, where its pictures or latents are of the model's kind.

    Raises:
        SettingsError: they do not.
    """
    channels, data = model.mmdit.config.channels, source.data
    if source.image is None and data.shape[1] != channels:
        raise SettingsError(
            f"expected pictures (B, 3, H, W) or latents (B, {channels}, h, w), "
            f"got {data.dtype} {tuple(data.shape)}"
        )
    return model.complete(settings)


def differences(saved: Settings, settings: Settings, noise: Closeness | None = None) -> tuple[str, ...]:
    """One line for each setting that makes another flow of the saved one, and one for what that cost.

    Args:
        saved: of the generation.
        settings: of the inversion.
        noise: how near the noise that was found is to that of the generation, where this is known.
    """
    now = settings.flow
    lines = [
        f"{name.replace('_', ' ')}: not what the picture was drawn with. That is another flow, and leads to "
        "other noise: it draws this picture under these settings, but is not what the picture came from"
        for name, was in saved.flow.items()
        if was != now[name]
    ]
    made = {name: (saved.made_with.get(name), settings.made_with.get(name)) for name in ENCODERS}
    if len({len(told or "") for told in made["weights"]}) > 1:  # not known of one, or hashes of two kinds
        del made["weights"]
    lines += [
        f"{name.replace('_', ' ')}: {was or 'none'} when the picture was drawn, {now or 'none'} here. "
        + ("That" if name in ("t5", "weights") else "Unless these are the same weights, that")
        + " is another flow"
        for name, (was, now) in {"model": (saved.model, settings.model), **made}.items()
        if was != now
    ]
    if lines and noise is not None:
        lines.append(
            f"so the noise found is at {noise.total_psnr:.1f} dB and a cosine of {noise.total_cosine:.2f} to "
            "that of the generation; invert without the differences to compare"
        )
    return tuple(lines)


def same_flow(one: Settings, other: Settings | None) -> bool:
    """Whether two settings make one flow."""
    return other is not None and one.flow == other.flow


def split_by_table(request: type, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is given, as settings of a task and as settings of a generation.

    Raises:
        SettingsError: a setting of neither.
    """
    own, others = fields.table(request), fields.table(Settings)
    if unknown := sorted(given.keys() - own.keys() - others.keys()):
        there = [*own, *(name for name, told in others.items() if told.is_option and name not in NOT_TAKEN)]
        raise SettingsError(f"there is no setting {', '.join(unknown)}; there are {', '.join(there)}")
    return (
        {name: value for name, value in given.items() if name in own},
        {name: value for name, value in given.items() if name not in own},
    )
