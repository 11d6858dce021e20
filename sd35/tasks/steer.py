"""From the ControlNets of a request to conditions of its velocity: found, loaded, their pictures encoded."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from mmdit import ControlNet, JointControlNet, MMDiTConfig
from vae.model import SCALE, SHIFT
from weights import SourceError, resolve
from weights.build import check_fit
from weights.component import Component
from weights.load import load_component

from ..adapters.control import control_image, control_type_of
from ..adapters.drawing import blurred, edges
from ..adapters.steering import BOTH, Net, Steering
from ..controls import Control
from ..errors import SettingsError
from ..fitting import latent_mask
from ..found import fingerprint
from ..memory import NOTHING
from ..model import Model
from ..settings import Settings
from .inputs import ControlInput, Inputs

HOLE = -1.0
"""What stands for the hole in the picture that a ControlNet for inpainting reads: black."""


def find_control(control: Control, config: MMDiTConfig) -> Component:
    """Look into a ControlNet's file, by its header alone.

    Raises:
        CheckpointError: there is none, or it holds no whole one.
        SettingsError: it is for another transformer, or not the one that was saved.
    """
    try:
        component = resolve(control.source, ["controlnet"]).component("controlnet")
    except SourceError as error:
        if not control.digest:
            raise
        raise SettingsError(
            f"the picture was drawn with the ControlNet {control}, which is not there: name it by --control "
            "FILE with its --control-image, or leave it out by --control none"
        ) from error
    check_net(cast(Net, check_fit(component)), config, control)
    if control.digest and fingerprint([component]) != control.digest:
        raise SettingsError(
            f"the picture was drawn with the ControlNet {control}, and that file is another one now: name "
            "the right one by --control FILE with its --control-image"
        )
    return component


def check_net(net: Net, config: MMDiTConfig, control: Control) -> None:
    """See that a ControlNet fits a transformer, and what is given to it.

    Raises:
        SettingsError: it does not.
    """
    if net.config.dim != config.dim:
        raise SettingsError(
            f"{control}: a ControlNet for a transformer of width {net.config.dim}, and this one has width "
            f"{config.dim}: it is for another model"
        )
    if net.config.depth > config.depth:
        raise SettingsError(
            f"{control} gives {net.config.depth} residuals to a transformer of {config.depth} blocks"
        )
    masked = isinstance(net, JointControlNet) and net.config.control_channels == config.channels + 1
    if masked != (control.mask is not None):
        raise SettingsError(
            f"{control} is made for inpainting: give --control-mask, white where to redraw"
            if masked
            else f"{control} reads no mask: leave --control-mask out"
        )


def steer(model: Model, settings: Settings, inputs: Inputs) -> tuple[Settings, list[Steering]]:
    """Load the ControlNets of a request and encode their pictures.

    Returns:
        The settings with the hashes of the files, and a condition for each.

    Raises:
        CheckpointError: a file cannot be read.
        SettingsError: a ControlNet does not fit the model or its picture.
    """
    if len(inputs.controls) != len(settings.control or ()):
        raise SettingsError(
            "these settings have ControlNets, whose pictures were not read: use pipe.generate"
        )
    done = list(_each(model, settings, inputs))
    controls = tuple(control for control, _ in done) or None
    return replace(settings, control=controls), [steering for _, steering in done]


def _each(model: Model, settings: Settings, inputs: Inputs) -> Iterator[tuple[Control, Steering]]:
    first, count = settings.left_out, settings.steps - settings.left_out
    controls = settings.control or ()
    nets = _nets(model, controls, inputs)
    for control, given, (net, digest) in zip(controls, inputs.controls, nets, strict=True):
        whole = (control.start, control.end) == (0, 1)
        kept = None if whole else frozenset(first + step for step in control.kept(count))
        if kept is not None and not kept:
            raise SettingsError(
                f"{control} acts in no step: from {control.start:g} to {control.end:g} none of {count} lies "
                "wholly within"
            )
        yield (
            replace(control, digest=digest),
            Steering(
                net,
                model.mmdit,
                encode_control(model, net, control, given),
                control.scale,
                kept,
                settings.control_rule,
                BOTH if settings.control_uncond else ("cond",),
            ),
        )


@dataclass(frozen=True)
class _File:
    """A ControlNet's file, before its weights are read."""

    component: Component
    digest: str
    key: Hashable
    """Of the file as it is now, and of what its weights are read to."""

    @classmethod
    def of(cls, control: Control, model: Model) -> "_File":
        if not control.source:
            raise SettingsError(
                "the ControlNet that this was made with was given in memory and is not saved: give control="
            )
        component = find_control(control, model.mmdit.config)
        digest = fingerprint([component])
        changed = [component.unit.folder.path(file).stat().st_mtime_ns for file in component.files]
        return cls(component, digest, (digest, *changed, model.device, model.dtype))


def _nets(model: Model, controls: Sequence[Control], inputs: Inputs) -> list[tuple[Net, str]]:
    """The modules, and the hashes of their files.

    Those that the last call read are taken again; those that this one has no use for are freed before others
    are read. With less memory than all parts take, none is kept.
    """
    files = [
        None if given.net is not None else _File.of(control, model)
        for control, given in zip(controls, inputs.controls, strict=True)
    ]
    nets = {file.key: model.nets[file.key] for file in files if file is not None and file.key in model.nets}
    model.nets = {}
    found = []
    for control, given, file in zip(controls, inputs.controls, files, strict=True):
        if file is None:
            found.append((_given_net(model, control, given.net), ""))
            continue
        if file.key not in nets:
            nets[file.key] = load_component(file.component, model.device, model.dtype)
        found.append((cast(Net, nets[file.key]), file.digest))
    model.nets = nets if model.plan == NOTHING else {}
    return found


def _given_net(model: Model, control: Control, net: nn.Module | None) -> Net:
    """A module of the caller's, which fits."""
    if not isinstance(net, ControlNet | JointControlNet):
        raise SettingsError(f"expected a ControlNet, got {type(net).__name__}")
    check_net(net, model.mmdit.config, control)
    return net


def encode_control(model: Model, net: Net, control: Control, given: ControlInput) -> Tensor:
    """The latents of a control picture, as a ControlNet of its kind was trained with.

        the official ones       (z - SHIFT) · SCALE of the picture, brought into the range of the file's kind
        joint blocks            z · SCALE, without the shift, where the pooled text is not read
        joint, for inpainting   (z - SHIFT) · SCALE of the picture with a black hole, and 1 where it is kept

    z is the mean of the encoder's posterior; the references draw from it, with a generator that no seed sets.

    Returns:
        (1 or B, 16 or 17, h, w), float32.
    """
    image = _drawn(net, control, given.image)
    if isinstance(net, ControlNet):
        reads = control_type_of(net) or ("canny" if control.kind == "canny" else None)
        ranged = image if reads is None or net.config.parallel else control_image(image, reads)
        return model.encode_image(ranged)
    if given.mask is not None:
        latents = model.encode_image(torch.where(given.mask == 1, HOLE, image))
        kept = 1 - latent_mask(given.mask, "nearest").to(latents)
        return torch.cat([latents, kept.expand(len(latents), -1, -1, -1)], dim=1)
    latents = model.encode_image(image)
    return latents if net.config.reads_pooled else latents + SHIFT * SCALE


def _drawn(net: Net, control: Control, image: Tensor) -> Tensor:
    """The control picture that is made of what was given."""
    reads = control_type_of(net) if isinstance(net, ControlNet) else None
    if control.kind != "raw" and reads is not None and control.kind != reads:
        raise SettingsError(
            f"{control}: its file says that it reads {reads}, and the control kind is {control.kind}: give "
            f"{reads}, or raw for a picture that is one already"
        )
    if control.kind == "canny":
        return edges(image)
    return blurred(image) if control.kind == "blur" else image
