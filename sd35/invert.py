"""From a picture, or its latents, back to the noise that it was drawn from; and what is lost on the way.

A picture loses in three places: the encoder is not the decoder's inverse, eight bits round, and the inverse
of the solver is approximate. Each is measured by itself, in the terms of `flow.closeness`.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import flow
from flow import Closeness, Companion, Report, closeness
from textenc.prompt import PromptLike, as_prompts
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

FLOW = (
    "prompts",
    "negative",
    "guidance_scale",
    "steps",
    "solver",
    "solver_options",
    "schedule",
    "schedule_shift",
    "policy",
    "missing",
)
"""The settings that decide where a solver goes; the rest decide where it begins, and how fast."""


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


def opened(
    data: Tensor | Image.Image | State,
    prompt: PromptLike | Sequence[PromptLike] | None,
    companion: Companion | None,
    given: Mapping[str, Any],
) -> tuple[Tensor | Image.Image, Settings, Companion | None, Settings | None]:
    """What is to be inverted and how it was made, from plain arguments or from a saved state.

    Args:
        data: pictures, latents, or a state, which brings its settings and its companion.
        prompt: of the generation; None leaves it to the state.
        companion: of a reversible solver; None leaves it to the state.
        given: other settings; they change what they name in those of a state.

    Returns:
        Pictures or latents, the settings, the companion if any, and the saved settings if any.

    Raises:
        SettingsError: a state without latents, no prompt at all, or settings out of range.
    """
    given = dict(given)
    if "negative" in given:
        (given["negative"],) = as_prompts(given["negative"])
    if prompt is not None:
        given["prompts"] = as_prompts(prompt)
    if isinstance(data, State):
        if data.latents is None:
            raise SettingsError("this state holds noise and no latents: there is nothing to invert")
        return data.latents, replace(data.settings, **given), companion or data.companion, data.settings
    if prompt is None:
        raise SettingsError("which prompt was the picture drawn from? Only a saved state knows by itself")
    count = 1 if isinstance(data, Image.Image) else len(data)
    given.setdefault("images_per_prompt", count if len(given["prompts"]) == 1 else 1)
    given.setdefault("seed", None)
    return data, Settings(**given), companion, None


def differences(saved: Settings, settings: Settings) -> tuple[str, ...]:
    """One line for each setting that makes another flow of the saved one, and what that costs."""
    names = [name for name in FLOW if getattr(saved, name) != getattr(settings, name)]
    return tuple(
        f"{name.replace('_', ' ')}: not what the picture was drawn with. That is another flow, and leads to "
        "other noise: it draws this picture under these settings, but is not what the picture came from"
        for name in names
    )


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
        notes=(*(differences(saved, settings) if saved is not None else ()), *_notes(pipe, report)),
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
    if pipe.dtype != torch.float32 and report.method != "undo":
        name = str(pipe.dtype).removeprefix("torch.")
        yield (
            f"the transformer computes in {name}, whose rounding the way back multiplies: "
            "load the model in float32 to invert"
        )
