"""From a picture, or its latents, back to the noise that it was drawn from; and what is lost on the way.

A picture loses in three places: the encoder is not the decoder's inverse, eight bits round, and the inverse
of the solver is approximate. Each is measured by itself, in the terms of `flow.closeness`.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import flow
from flow import Closeness, Companion, Report, closeness
from flow.inverse.invert import undoes
from vae.image import to_uint8
from vae.refine import refine

from .errors import SettingsError
from .generation import field_of
from .given import checked, differences
from .guided import GuidedVelocity, stepped, velocity_of
from .noise import draw_noise, generators
from .settings import Settings
from .state import State

if TYPE_CHECKING:
    from .pipeline import Pipeline

IMAGE_RANGE = 2.0
"""Of an image, from -1 to 1."""


@dataclass(frozen=True)
class Inverted:
    """The noise that was found, and what was lost on the way. Tensors are float32 on the CPU."""

    noise: Tensor
    """(B, 16, h, w)."""
    latents: Tensor
    """(B, 16, h, w), what was inverted: the picture's, where a picture came."""
    settings: Settings
    """Of the generation that is undone."""
    report: Report
    """How the inverse of the solver went: evaluations, residuals, what did not converge."""
    losses: Mapping[str, Closeness] = field(default_factory=dict)
    """By stage, how close its output is to what it should be, as far as that is known:

        encoder     decode(encode(picture)) to the picture
        refined     decode(latents) to the picture, where the latents were refined
        rounding    that picture in 8 bits to itself
        solver      what the solver makes of the noise to the latents
        noise       the noise to the true one, where the seed or the noise is known
    """
    notes: tuple[str, ...] = ()
    """What a user should know before believing the noise."""

    def state(self) -> State:
        """The noise as a state that can be saved."""
        return State(self.settings, noise=self.noise)

    def __str__(self) -> str:
        """The losses as a table."""
        lines = [f"{'stage':<10}{'PSNR dB':>10}{'cosine':>12}{'MSE':>12}{'range':>9}"]
        lines += [
            f"{stage:<10}{one.total_psnr:>10.2f}{one.total_cosine:>12.6f}{one.total_mse:>12.3e}"
            f"{one.data_range:>9.3g}"
            for stage, one in self.losses.items()
        ]
        return "\n".join(lines)


def invert(
    pipe: "Pipeline",
    data: Tensor | Image.Image,
    settings: Settings,
    *,
    saved: Settings | None = None,
    method: str = "exact",
    options: Mapping[str, Any] | None = None,
    companion: Companion | None = None,
    noise: Tensor | None = None,
    refine_steps: int = 0,
    measure: bool = True,
    progress: bool = False,
) -> Inverted:
    """Find the noise of pictures; see `Pipeline.invert`, which makes the settings from plain arguments.

    Args:
        pipe: the model.
        data: pictures or latents.
        settings: to invert with.
        saved: of the generation, where they are known; what differs is told in the notes.
        method: a name in `flow.METHODS`.
        options: of the method.
        companion: of a reversible solver.
        noise: the true noise.
        refine_steps: by which the latents of pictures are improved.
        measure: draw again from the noise.
        progress: show a bar.
    """
    companion = companion if undoes(method, companion) else None
    check_method(settings, method, options, companion)
    image, latents, settings = checked(pipe, data, settings)
    check_refining(image is not None, refine_steps)
    if noise is not None:
        pipe.check_noise(noise, settings)
    velocity = velocity_of(pipe.mmdit, settings, pipe.encode_each(settings))
    losses: dict[str, Closeness] = {}
    if image is not None:
        latents, losses = _encoded(pipe, image, refine_steps)
    assert latents is not None

    sigmas = settings.sigmas
    given = dict(settings.solver_options) if companion is not None else _options(settings, method, options)
    found, report = way_back(
        velocity, latents, settings, sigmas, method, given, companion=companion, progress=progress
    )
    if measure:
        again = flow.SOLVERS[settings.solver].run(velocity, found, sigmas, **settings.solver_options)
        end = flow.last(stepped(again, range(settings.steps), velocity))
        losses["solver"] = closeness(end.x, latents)
    if noise is None and settings.seeds:
        noise = draw_noise(generators(settings.seeds), latents.shape[1:])
    if noise is not None:
        losses["noise"] = closeness(found.cpu(), noise.cpu())
    other = () if saved is None else differences(saved, settings, losses.get("noise"))
    return Inverted(
        noise=found.detach().cpu(),
        latents=latents.detach().cpu(),
        settings=settings,
        report=report,
        losses=losses,
        notes=(*other, *notes_of(pipe, report)),
    )


def check_method(
    settings: Settings,
    method: str,
    options: Mapping[str, Any] | None = None,
    companion: Companion | None = None,
) -> None:
    """Refuse a method that cannot invert a generation of these settings, before anything is computed.

    Raises:
        SettingsError: options, where the generation is undone from its companion, or no options of a method.
        FlowError: as `flow.inverting`, which checks all but the data before its first step.
    """
    if undoes(method, companion):
        assert companion is not None
        _check_undoing(settings, options or {}, companion)
        return
    for name in options or ():
        if name in signature(flow.inverting).parameters:
            raise SettingsError(f"{name!r} is no option of a method: it is given by itself")
    options = _options(settings, method, options)
    flow.inverting(lambda x, sigma: x, torch.zeros(1, 1), settings.sigmas, method, settings.solver, **options)


def _check_undoing(settings: Settings, options: Mapping[str, Any], companion: Companion) -> None:
    """See that a companion is that of a generation of these settings, as far as they tell."""
    if options:
        raise SettingsError(
            "with its companion a generation is undone, which takes no options: leave out "
            f"{', '.join(options)}, or name another method"
        )
    given = {
        "solver": settings.solver,
        "options": dict(settings.solver_options),
        "sigmas": settings.sigmas.float().tolist(),
        "extra": field_of(settings),
    }
    companion.check({**companion.settings, **given})


def check_refining(is_picture: bool, steps: int) -> None:
    """See that there is a picture where latents are to be refined.

    Raises:
        SettingsError: there is none, or fewer steps than 0.
    """
    if steps < 0:
        raise SettingsError(f"refine_steps must be at least 0, got {steps}")
    if steps and not is_picture:
        raise SettingsError(
            "these are latents already: only those of a picture can be refined; leave out refine_steps"
        )


def _options(settings: Settings, method: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keyword arguments of a method; the naive one runs the solver, and as the generation ran it."""
    return {**(settings.solver_options if method == "naive" else {}), **(options or {})}


def _encoded(pipe: "Pipeline", image: Tensor, refine_steps: int) -> tuple[Tensor, dict[str, Closeness]]:
    """The latents of pictures, and what their coding loses."""
    latents = pipe.encode(image)
    decoded = pipe.decode(latents).clamp(-1, 1)
    losses = {"encoder": closeness(decoded, image, IMAGE_RANGE)}
    if refine_steps:
        better = deque(refine(pipe.vae, image, latents, steps=refine_steps), maxlen=1).pop()
        latents = better.latents.detach()
        decoded = pipe.decode(latents).clamp(-1, 1)
        losses["refined"] = closeness(decoded, image, IMAGE_RANGE)
    rounded = to_uint8(decoded).float() / 127.5 - 1
    losses["rounding"] = closeness(rounded, decoded.detach(), IMAGE_RANGE)
    return latents, losses


def way_back(
    velocity: GuidedVelocity,
    latents: Tensor,
    settings: Settings,
    sigmas: Tensor,
    method: str,
    options: Mapping[str, Any],
    *,
    companion: Companion | None = None,
    progress: bool = False,
) -> tuple[Tensor, Report]:
    """Find the noise that leads to latents, as `flow.inversion`, with a bar; the velocity knows its step.

    Args:
        velocity: of the settings.
        latents: (B, 16, h, w).
        settings: of the generation.
        sigmas: the part of its noise levels that is inverted, to the end.
        method: a name in `flow.METHODS`.
        options: of the method, or of a reversible solver.
        companion: of a reversible solver.
        progress: show a bar.
    """
    steps = flow.inverting(
        velocity,
        latents,
        sigmas,
        method,
        settings.solver,
        companion=companion,
        extra=field_of(settings),
        **options,
    )
    count, reports, x = len(sigmas) - 1, [], latents
    taken = stepped(steps, reversed(range(count)), velocity)
    for step in tqdm(taken, desc="inverting", total=count, unit="step", disable=not progress):
        x = step.x
        reports.append(step.report)
    return x, Report("undo" if undoes(method, companion) else method, settings.solver, tuple(reports))


def notes_of(pipe: "Pipeline", report: Report) -> Iterator[str]:
    """What stands between the noise and belief."""
    yield from report.problems
    if pipe.dtype != torch.float32 and report.method != "undo":
        name = str(pipe.dtype).removeprefix("torch.")
        yield (
            f"the transformer computes in {name}, whose rounding the way back multiplies: "
            "load the model in float32 to invert"
        )
