"""From a picture under one prompt to a picture under another.

    inversion       find the picture's noise under its own prompt, and draw from it under the other
    flow_edit       no noise is found: follow the difference of the two flows (Kulikov et al. 2024,
                    arXiv:2412.08629)
    rf_inversion    find noise without a prompt, bent to be typical, and draw from it while being held near
                    the picture (Rout et al. 2024, arXiv:2410.10792)

The mathematics of the last two is `flow.flow_edit`, and `flow.toward_noise` with `flow.toward_data`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from PIL import Image
from torch import Tensor
from tqdm import tqdm

import flow
from flow import Companion
from flow.solvers.runge_kutta import SLOPES
from textenc import Prompt
from vae.image import save_png16, to_pil

from .errors import SettingsError
from .files import written
from .given import checked
from .guidance import PLAIN
from .guided import GuidedVelocity, stepped, velocity_of
from .invert import check_method, notes_of, way_back
from .noise import draw_noise, generators
from .result import check_pictures
from .settings import Settings

if TYPE_CHECKING:
    from .pipeline import Pipeline

EditMethod = Literal["inversion", "flow_edit", "rf_inversion"]


@dataclass(frozen=True)
class Control:
    """What rf_inversion bends the two ways by: γ and η of the paper, and where η acts."""

    toward_noise: float = 0.5
    """γ: 0 follows the flow without a prompt, 1 goes straight to drawn noise and forgets the picture."""
    toward_data: float = 0.9
    """η: 0 lets the other prompt have its way, 1 returns to the picture."""
    interval: tuple[float, float] = (0.75, 1.0)
    """The noise levels where η acts: the early ones keep the layout and leave the rest to the prompt."""


@dataclass(frozen=True)
class Edited:
    """Pictures that were edited. Tensors are float32 on the CPU."""

    image: Tensor
    """(B, 3, H, W), nominally in [-1, 1]."""
    latents: Tensor
    """(B, 16, h, w)."""
    settings: Settings
    """Of the second half, with the other prompt. They do not make the picture again by themselves."""
    notes: tuple[str, ...] = ()
    """What a user should know: where the inversion did not converge, or nothing pulls toward the picture."""

    @cached_property
    def images(self) -> list[Image.Image]:
        """The pictures, B of them, in 8 bits."""
        return [to_pil(image) for image in self.image]

    def save(self, path: str | Path, *, overwrite: bool = False, bits: int = 8) -> list[Path]:
        """Write the pictures as PNG; as `Result.save`, without settings, which could not draw them again."""
        paths = check_pictures(path, len(self.image), overwrite=overwrite, bits=bits)
        for index, one in enumerate(paths):
            with written(one, overwrite=overwrite) as temporary:
                if bits == 16:
                    save_png16(self.image[index], temporary)
                else:
                    self.images[index].save(temporary, format="PNG")
        return paths


def edit(
    pipe: "Pipeline",
    data: Tensor | Image.Image,
    source: Settings,
    target: Settings,
    *,
    method: EditMethod = "inversion",
    strength: float = 1.0,
    companion: Companion | None = None,
    control: Control | None = None,
    average: int = 1,
    accuracy: float | None = None,
    progress: bool = False,
) -> Edited:
    """Edit pictures; see `Pipeline.edit`, which makes the settings from plain arguments.

    Raises:
        ValueError: as `Pipeline.edit`.
    """
    check_edit(source, method, strength, companion, control, average, accuracy)
    sigmas = levels(source, method, strength)
    latents, source, target = _checked(pipe, data, source, target)

    notes: tuple[str, ...] = ()
    if method == "inversion":
        steps, notes = _by_inversion(pipe, latents, source, target, sigmas, companion, accuracy, progress)
    elif method == "flow_edit":
        before, after = _velocity(pipe, source), _velocity(pipe, target)
        drawn = generators(target.seeds)
        steps = flow.flow_edit(before, after, latents, sigmas, generator=drawn, average=average)
        steps = stepped(steps, range(len(sigmas) - 1), before, after)
    else:
        control = control or Control()
        if sigmas[0] <= control.interval[0]:
            notes = (
                f"at strength {strength:g} the edit begins at noise level {float(sigmas[0]):.3g}; η acts "
                f"from {control.interval[0]:g} up, which is never: nothing pulls toward the picture",
            )
        steps = _held_near(pipe, latents, target, sigmas, control, progress)
    for step in tqdm(steps, total=len(sigmas) - 1, unit="step", disable=not progress):
        latents = step.x
    return Edited(pipe.decode(latents).detach().cpu(), latents.detach().cpu(), target, notes)


def check_edit(
    source: Settings,
    method: str,
    strength: float,
    companion: Companion | None = None,
    control: Control | None = None,
    average: int = 1,
    accuracy: float | None = None,
) -> None:
    """Refuse arguments of `edit` that are of another method than the one named, before anything is loaded.

    Raises:
        SettingsError: no such method, an argument that is another method's, or a solver that draws noise.
        FlowError: a strength or an accuracy out of range.
    """
    levels(source, method, strength)
    if companion is not None and not reaches_noise(method, strength):
        raise SettingsError("a companion is of use to the method inversion at strength 1 only: leave it out")
    is_exact = method == "inversion" and companion is None and _inverse_of(source) == "exact"
    for name, of, is_given, fits in (
        ("accuracy", "the exact inverse", accuracy is not None, is_exact),
        ("control (γ, η and where η acts)", "rf_inversion", control is not None, method == "rf_inversion"),
        ("average", "flow_edit", average != 1, method == "flow_edit"),
    ):
        if is_given and not fits:
            raise SettingsError(f"{name} is of {of}, and this edit takes another way: leave it out")
    if flow.SOLVERS[source.solver].stochastic:
        raise SettingsError(f"{source.solver} draws noise at every step: an edit needs a solver without")
    if accuracy is not None:
        check_method(source, "exact", {"accuracy": accuracy})


def reaches_noise(method: str, strength: float) -> bool:
    """Whether an edit goes back all the way to the noise, so that a companion is of use."""
    return method == "inversion" and strength == 1


def levels(source: Settings, method: str, strength: float) -> Tensor:
    """The noise levels that an edit runs through, from where its strength begins to 0.

    Raises:
        SettingsError: there is no such method.
        FlowError: a strength out of range.
    """
    if method not in get_args(EditMethod):
        raise SettingsError(f"method must be one of {', '.join(get_args(EditMethod))}; got {method!r}")
    return source.sigmas[flow.start_step(source.steps, strength) :]


def aimed(
    source: Settings,
    prompts: tuple[Prompt, ...],
    seed: int | None = None,
    guidance_scale: float | None = None,
) -> Settings:
    """The settings of an edit: the source's with other prompts, one for all its pictures or one for each.

    Args:
        source: of the pictures as they are.
        prompts: what is wanted.
        seed: to draw from; None takes the source's, or 0 where it has none.
        guidance_scale: None takes the source's.
    """
    scale = source.guidance_scale if guidance_scale is None else guidance_scale
    seed = (source.seed or 0) if seed is None else seed
    each = source.images if len(prompts) == 1 else 1
    return replace(source, prompts=prompts, images_per_prompt=each, seed=seed, guidance_scale=scale)


def _by_inversion(
    pipe: "Pipeline",
    latents: Tensor,
    source: Settings,
    target: Settings,
    sigmas: Tensor,
    companion: Companion | None,
    accuracy: float | None,
    progress: bool,
) -> tuple[Iterator[flow.Step], tuple[str, ...]]:
    """The way down under the target from the noise that leads to the latents under the source."""
    method = _inverse_of(source) if companion is None else "exact"
    options = dict(source.solver_options) if accuracy is None else {"accuracy": accuracy}
    noise, report = way_back(
        _velocity(pipe, source),
        latents,
        source,
        sigmas,
        method,
        options,
        companion=companion,
        progress=progress,
    )
    velocity = _velocity(pipe, target)
    steps = flow.SOLVERS[target.solver].run(velocity, noise, sigmas, **target.solver_options)
    notes = tuple(notes_of(pipe, report))
    if method == "naive":
        notes = (
            f"{source.solver} cannot be undone from its last state alone: its inverse is approximate",
            *notes,
        )
    return stepped(steps, range(len(sigmas) - 1), velocity), notes


def _inverse_of(source: Settings) -> str:
    """The method that inverts a generation from its last state alone."""
    return "exact" if source.solver in SLOPES else "naive"


def _held_near(
    pipe: "Pipeline", latents: Tensor, target: Settings, sigmas: Tensor, control: Control, progress: bool
) -> Iterator[flow.Step]:
    """RF-Inversion: up without a prompt and without guidance, down with the prompt, held near the latents."""
    nothing = replace(target, prompts=(target.negative,), images_per_prompt=len(latents), guidance_scale=1.0)
    nothing = replace(nothing, guidance=PLAIN)
    typical = draw_noise(generators(target.seeds), latents.shape[1:]).to(latents)
    unprompted, prompted = _velocity(pipe, nothing), _velocity(pipe, target)
    upward = flow.toward_noise(unprompted, typical, control.toward_noise)
    downward = flow.toward_data(prompted, latents, control.toward_data, control.interval)
    solver, count = flow.SOLVERS[target.solver], len(sigmas) - 1
    steps = solver.run(upward, latents, sigmas.flip(0), **target.solver_options)
    taken = stepped(steps, reversed(range(count)), unprompted)
    noise = flow.last(tqdm(taken, desc="inverting", total=count, unit="step", disable=not progress)).x
    steps = solver.run(downward, noise, sigmas, **target.solver_options)
    return stepped(steps, range(count), prompted)


def _checked(
    pipe: "Pipeline", data: Tensor | Image.Image, source: Settings, target: Settings
) -> tuple[Tensor, Settings, Settings]:
    """The latents of the data, and both settings, complete.

    Raises:
        SettingsError: the data do not fit, or a target without a seed to draw from.
    """
    image, latents, source = checked(pipe, data, source)
    if target.seed is None:
        raise SettingsError("the settings of an edit need a seed, from which some methods draw noise")
    target = pipe.complete(replace(target, width=source.width, height=source.height))
    if target.images != source.images:
        raise SettingsError(f"expected a prompt for each of {source.images} pictures, got {target.images}")
    if latents is None:
        assert image is not None
        latents = pipe.encode(image)
    return latents, source, target


def _velocity(pipe: "Pipeline", settings: Settings) -> GuidedVelocity:
    return velocity_of(pipe.mmdit, settings, pipe.encode_each(settings))
