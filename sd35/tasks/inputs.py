"""The pictures of a request: opened, brought to one size, and recorded, before a model is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import fields
from ..controls import Control, controls_of
from ..errors import SettingsError
from ..fitting import binary, fitted, grey, nearest_size, seam
from ..opening import Opened, open_masks, open_pictures
from ..settings import Settings
from ..shown import Shown
from ..units import LATENT, SIZE_UNIT


@dataclass(frozen=True)
class ControlInput:
    """What one ControlNet is given."""

    image: Tensor
    """(1 or B, 3, H, W) in [-1, 1], of the size that is drawn."""
    mask: Tensor | None = None
    """(1 or B, 1, H, W), 1 where something new is drawn."""
    net: nn.Module | None = None
    """The ControlNet, where it was given as a module."""


@dataclass(frozen=True)
class Inputs:
    """Pictures as tensors, of the size that is drawn."""

    image: Tensor | None = None
    """(1 or B, 3, H, W) in [-1, 1]; or latents (1 or B, 16, h, w)."""
    mask: Tensor | None = None
    """(1 or B, 1, H, W), 1 where something new is drawn."""
    controls: tuple[ControlInput, ...] = ()
    notes: tuple[str, ...] = ()
    """What was changed in the pictures to use them."""

    def counts(self) -> list[tuple[str, int]]:
        """How many pictures there are of each, for the check against those that are drawn."""
        found = [("image", self.image), ("mask", self.mask)]
        found += [("control image", one.image) for one in self.controls]
        found += [("control mask", one.mask) for one in self.controls]
        return [(name, len(tensor)) for name, tensor in found if tensor is not None]


NOTHING = Inputs()


def take_inputs(given: Mapping[str, Any], base: Settings | None = None) -> tuple[dict[str, Any], Inputs]:
    """Open the pictures of a request.

    Args:
        given: settings by name, where pictures, masks and ControlNets are as a user has them.
        base: settings of an earlier picture, whose pictures are opened where `given` names no others.

    Returns:
        `given` with records in place of pictures, and with the size that they decide; and the pictures.

    Raises:
        OSError: a picture is not there.
        SettingsError: it is no picture, of another size than what is drawn, or is not the one that was saved.
    """
    taken = dict(given)
    asked = {name: given.get(name, getattr(base, name, None)) for name in ("image", "mask", "fit")}
    controls = controls_of(given.get("control", None if base is None else base.control))
    images, masks = open_pictures(asked["image"]), open_masks(asked["mask"])
    steering = [_OpenedControl.of(control) for control in controls]
    if not images and not steering:
        return _recorded(taken, images, masks, steering), NOTHING
    size = _size(given, base, (images or steering[0].images)[0])
    notes = [note for one in (*images, *masks) for note in one.notes]
    image = _together(images, size, asked["fit"], notes)
    white = given.get("mask_white") or (base.mask_white if base is not None else "redrawn")
    mask = _mask(masks, images, size, asked["fit"], white, notes) if images else None
    inputs = Inputs(
        image=image,
        mask=mask,
        controls=tuple(one.input(size, asked["fit"], notes) for one in steering),
        notes=tuple(dict.fromkeys(notes)),
    )
    taken |= {"width": size[0], "height": size[1]}
    return _recorded(taken, images, masks, steering), inputs


@dataclass(frozen=True)
class _OpenedControl:
    """A ControlNet with its pictures read."""

    control: Control
    images: list[Opened]
    masks: list[Opened]

    @classmethod
    def of(cls, control: Control) -> "_OpenedControl":
        images = open_pictures(control.image, "control image")
        if not images:
            raise SettingsError(f"{control} reads a picture: give it (--control-image)")
        if any(one.data.shape[1] != 3 for one in images):
            raise SettingsError("a control picture must be a picture, (B, 3, H, W), not latents")
        return cls(control, images, open_masks(control.mask, "control mask"))

    def input(self, size: tuple[int, int], how: str | None, notes: list[str]) -> ControlInput:
        """The pictures as tensors of one size."""
        notes += [note for one in (*self.images, *self.masks) for note in one.notes]
        source = self.control.source
        return ControlInput(
            image=_joined([_one(one, size, how, notes) for one in self.images]),
            mask=_mask(self.masks, self.images, size, how, "redrawn", notes),
            net=source if isinstance(source, nn.Module) else None,
        )

    @property
    def recorded(self) -> Control:
        """The ControlNet as it is written down."""
        masks = tuple(one.shown for one in self.masks) or None
        image = tuple(one.shown for one in self.images)
        return replace(self.control, image=image, mask=masks).recorded


def _recorded(
    taken: dict[str, Any], images: list[Opened], masks: list[Opened], steering: list[_OpenedControl]
) -> dict[str, Any]:
    """Settings by name, with records of what was opened."""
    records: dict[str, tuple[Shown, ...] | tuple[Control, ...]] = {
        "image": tuple(one.shown for one in images),
        "mask": tuple(one.shown for one in masks),
        "control": tuple(one.recorded for one in steering),
    }
    for name, record in records.items():
        if record or taken.get(name) is not None:  # what was given and is none takes the place of a saved one
            taken[name] = record
    return taken


def _size(given: Mapping[str, Any], base: Settings | None, first: Opened) -> tuple[int, int]:
    """Width and height of what is drawn: what was asked for, else the picture's nearest."""
    if first.data.shape[1] != 3:
        height, width = (LATENT * side for side in first.data.shape[2:])
        return width, height
    width, height = nearest_size(first.data)
    return (
        given.get("width") or (base.width if base is not None else None) or width,
        given.get("height") or (base.height if base is not None else None) or height,
    )


def _together(
    opened: list[Opened], size: tuple[int, int], how: str | None, notes: list[str]
) -> Tensor | None:
    """Images or latents of one size as one tensor; None where there are none."""
    if len({one.data.shape[1] for one in opened}) > 1:
        raise SettingsError("pictures and latents cannot be given together: give one kind")
    return _joined([_one(one, size, how, notes) for one in opened]) if opened else None


def _one(
    opened: Opened, size: tuple[int, int], how: str | None, notes: list[str], fill: float | None = None
) -> Tensor:
    """One picture in the size that is drawn.

    Raises:
        SettingsError: it has another size, and nothing says how it is brought there.
    """
    if opened.data.shape[1] != 3:
        return opened.data
    height, width = opened.data.shape[2:]
    if (width, height) == size:
        return opened.data
    if how is None:
        wanted = f"{size[0]} x {size[1]}"
        raise SettingsError(
            f"{opened.name} has {width} x {height} pixels and {wanted} are drawn (sides are multiples of "
            f"{SIZE_UNIT}): say how it is brought there, by --fit crop, pad or stretch (fit=); --width and "
            "--height draw another size"
        )
    words = {"crop": "scaled and cropped", "pad": "scaled and padded", "stretch": "stretched"}
    notes.append(f"{opened.name}: {words[how]} from {width} x {height} to {size[0]} x {size[1]}")
    return fitted(opened.data, *size, how, fill)


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors)


def _mask(
    masks: list[Opened],
    images: list[Opened],
    size: tuple[int, int],
    how: str | None,
    white: str,
    notes: list[str],
) -> Tensor | None:
    """Masks at the size that is drawn, 1 where something new is drawn; None where there are none.

    Raises:
        SettingsError: a mask fits neither its picture nor what is drawn, or redraws nothing or everything.
    """
    drawn = []
    for index, one in enumerate(masks):
        picture = images[min(index, len(images) - 1)].data
        own, of_picture = tuple(one.data.shape[2:]), tuple(picture.shape[2:])
        if picture.shape[1] == 3 and own not in (of_picture, size[::-1]) and how != "stretch":
            raise SettingsError(
                f"the mask has {own[1]} x {own[0]} pixels and its picture {of_picture[1]} x {of_picture[0]}: "
                "they must have one size, so that each pixel has its own"
            )
        fill = 1.0 if white == "redrawn" else -1.0
        mask = binary(_one(replace(one, data=_as_picture(one.data)), size, how, notes, fill)[:, :1], white)
        if not bool(mask.any()):
            other = "kept" if white == "redrawn" else "redrawn"
            raise SettingsError(
                f"this mask redraws nothing: its white is {white}; --mask-white {other} turns it around"
            )
        drawn.append(mask)
    return _joined(drawn) if drawn else None


def _as_picture(mask: Tensor) -> Tensor:
    """A mask in grey, as three equal channels."""
    return grey(mask).expand(-1, 3, -1, -1)


def still_idle(settings: Settings, strength: float, first: int) -> SettingsError:
    """The error of zero_steps where the first step that is run comes after them all."""
    where = f"in a run that begins with them; at strength {strength:g} this one begins at step {first}"
    return fields.idle(settings.guidance, "zero_steps", where)


def check_inputs(inputs: Inputs, settings: Settings) -> None:
    """See that pictures fit the settings that go with them.

    Raises:
        SettingsError: another number of them, or they would have no effect.
    """
    for name, count in inputs.counts():
        if count not in (1, settings.images):
            raise SettingsError(
                f"there are {count} of {name} for {settings.images} pictures: give one for all, or one "
                "for each"
            )
    if inputs.image is not None and inputs.mask is None and settings.left_out == 0:
        raise SettingsError(
            f"at strength {settings.strength:g} all {settings.steps} steps are run from noise alone, and the "
            "image has no effect: give a lower strength, or a mask of what to redraw"
        )
    still = settings.guidance.zero_steps
    if 0 < still <= settings.left_out:
        raise still_idle(settings, settings.strength, settings.left_out)
    if settings.paste and inputs.mask is not None:
        if inputs.image is not None and inputs.image.shape[1] != 3:
            raise SettingsError("the pixels of latents are not known: paste needs the image as a picture")
        seam(inputs.mask, settings.feather)
