"""From a picture, or its latents, back to the noise that it was drawn from; and what is lost on the way.

A picture loses in three places: the encoder is not the decoder's inverse, eight bits round, and the inverse
of the solver is approximate. Each is measured by itself, in the terms of `flow.closeness`.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import flow
from flow import Closeness, Companion, Report, closeness
from vae.image import to_tensor, to_uint8
from vae.refine import refine

from .errors import SettingsError
from .generation import field_of
from .guided import GuidedVelocity
from .noise import draw_noise, generators
from .settings import SIZE_UNIT, Settings
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
    method: str = "exact",
    options: Mapping[str, Any] | None = None,
    companion: Companion | None = None,
    noise: Tensor | None = None,
    refine_steps: int = 0,
    measure: bool = True,
    progress: bool = False,
) -> Inverted:
    """Find the noise of pictures; see `Pipeline.invert`, which makes the settings from plain arguments."""
    image, latents, settings = checked(pipe, data, settings)
    *cond, uncond = pipe.encode_each(settings)
    losses: dict[str, Closeness] = {}
    if image is not None:
        latents, losses = _encoded(pipe, image, refine_steps)
    assert latents is not None

    velocity = GuidedVelocity(
        pipe.mmdit, cond, uncond, settings.guidance_scale, batch_size=settings.batch_size
    )
    sigmas = flow.sigmas(settings.steps, settings.schedule_shift, settings.schedule)
    given = dict(options or {}) | (dict(settings.solver_options) if companion is not None else {})
    steps = flow.inverting(
        velocity,
        latents,
        sigmas,
        method,
        settings.solver,
        companion=companion,
        extra=field_of(settings),
        **given,
    )
    found, report = _run(steps, velocity, settings, "undo" if companion is not None else method, progress)
    if measure:
        again = flow.solve(velocity, found, sigmas, settings.solver, **settings.solver_options)
        losses["solver"] = closeness(again, latents)
    true = draw_noise(generators(settings.seeds), latents.shape[1:]) if settings.seeds else noise
    if true is not None:
        losses["noise"] = closeness(found.cpu(), true.cpu())
    return Inverted(
        noise=found.detach().cpu(),
        latents=latents.detach().cpu(),
        settings=settings,
        report=report,
        losses=losses,
        notes=tuple(_notes(pipe, report)),
    )


def checked(
    pipe: "Pipeline", data: Tensor | Image.Image, settings: Settings
) -> tuple[Tensor | None, Tensor | None, Settings]:
    """Tell pictures from latents, and see that they are those of the settings.

    Returns:
        The image or None, the latents or None, and the settings with the size filled in.
    """
    tensor = to_tensor(data) if isinstance(data, Image.Image) else data
    channels = pipe.mmdit.config.channels
    if tensor.ndim != 4 or tensor.shape[1] not in (3, channels) or not tensor.is_floating_point():
        raise SettingsError(
            f"expected pictures (B, 3, H, W) or latents (B, {channels}, h, w), "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    is_image = tensor.shape[1] == 3
    height, width = (side * (1 if is_image else pipe.vae.config.factor) for side in tensor.shape[2:])
    if height % SIZE_UNIT or width % SIZE_UNIT:
        raise SettingsError(
            f"a picture of {width} x {height} is none of this model's: its sides must be multiples of "
            f"{SIZE_UNIT}. vae.image.fit scales and crops, but no generation ended there"
        )
    if (settings.width or width, settings.height or height) != (width, height):
        raise SettingsError(
            f"the settings are those of {settings.width} x {settings.height}, and this has {width} x {height}"
        )
    if len(tensor) != settings.images:
        raise SettingsError(f"the settings are those of {settings.images} pictures, got {len(tensor)}")
    settings = pipe.complete(replace(settings, width=width, height=height))
    tensor = tensor.detach().float().to(pipe.device)
    return (tensor, None, settings) if is_image else (None, tensor, settings)


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


def _run(
    steps: Iterator[flow.InverseStep], velocity: GuidedVelocity, settings: Settings, name: str, progress: bool
) -> tuple[Tensor, Report]:
    """Take the steps of an inversion to their end."""
    reports, x = [], None
    velocity.step = settings.steps - 1
    for step in tqdm(steps, total=settings.steps, unit="step", disable=not progress):
        x = step.x
        reports.append(step.report)
        velocity.step = max(step.report.number - 1, 0)
    assert x is not None
    return x, Report(name, settings.solver, tuple(reports))


def _notes(pipe: "Pipeline", report: Report) -> Iterator[str]:
    """What stands between the noise and belief."""
    yield from report.problems
    if pipe.dtype != torch.float32:
        name = str(pipe.dtype).removeprefix("torch.")
        yield (
            f"the transformer computes in {name}, whose rounding the way back multiplies: "
            "load the model in float32 to invert, unless the generation was bit-exact"
        )
