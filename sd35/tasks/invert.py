"""From a picture, or its latents, back to the noise that it was drawn from; and what is lost on the way.

A picture loses in three places: the encoder is not the decoder's inverse, eight bits round, and the inverse
of the solver is approximate. Each is measured by itself, in the terms of `flow.closeness`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

import flow
from flow import Closeness, Companion, Report, closeness
from flow.inverse.invert import undoes
from textenc.prompt import PromptLike

from .. import fields
from ..device import as_dtype
from ..errors import SettingsError
from ..methods import Inverting
from ..model import Model
from ..noise import draw_noise, generators
from ..presets import UNKNOWN, Variant
from ..saved.state import State
from ..settings import Settings
from ..velocity import GuidedVelocity, velocity_of
from .coding import latents_of
from .generate import Noise, as_noise
from .inputs import NOTHING, Inputs
from .source import (
    Data,
    Source,
    differences,
    open_with_inputs,
    settings_for,
    source_settings,
    split_by_table,
)
from .steer import steer
from .steps import take_steps


@dataclass(frozen=True, kw_only=True)
class Invert(Inverting):
    """A request to find the noise of pictures, checked as far as it can be without a model.

    Raises:
        SettingsError: settings that do not fit each other or what is there.
        FlowError: what the method refuses.
    """

    source: Source
    settings: Settings
    """To invert with: another prompt or guidance scale than the generation's is another flow."""
    companion: Companion | None = None
    """What a reversible solver left: with it "exact" undoes the generation; other methods do not use it."""
    noise: Tensor | None = None
    """The true noise, where it is known, to compare with."""
    inputs: Inputs = NOTHING
    """The pictures of its ControlNets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.refuse_idle(self, fields.changed(self))
        if self.refine_steps and self.source.image is None:
            raise fields.idle(self, "refine_steps", "with a picture, and these are latents already")
        if self.undoes:
            self._check_undoing()
            return
        for name in self.method_options:
            if name in signature(flow.inverting).parameters:
                raise SettingsError(f"{name!r} is no option of a method: it is given by itself")
        check_method(self.settings, self.method, self.options)

    @classmethod
    def of(
        cls,
        data: Data,
        prompt: PromptLike | Sequence[PromptLike] | None = None,
        given: Mapping[str, Any] | None = None,
        *,
        companion: Companion | None = None,
        noise: Noise | None = None,
        variant: Variant = UNKNOWN,
    ) -> "Invert":
        """The request of what a user gave, see `Pipeline.invert`; `variant` as in `Generate.of`.

        Raises:
            OSError: there is no such file.
            SettingsError: as the class; and a setting without effect.
        """
        own, of_generation = split_by_table(cls, dict(given or {}))
        if prompt is not None:
            of_generation["prompts"] = prompt
        source, of_generation, inputs = open_with_inputs(data, of_generation)
        settings, notes = source_settings(source, of_generation, variant=variant)
        if noise is None and settings.seed is None:
            noise = source.noise
        request = cls(
            source=replace(source, notes=(*source.notes, *notes)),
            settings=settings,
            companion=companion or source.companion,
            noise=None if noise is None else as_noise(noise),
            inputs=inputs,
            **own,
        )
        fields.refuse_idle(request, own)
        return request

    @property
    def undoes(self) -> bool:
        """Whether a generation is undone from its companion."""
        return undoes(self.method, self.companion)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the method; the naive one runs the solver as the generation ran it."""
        if self.undoes:
            return dict(self.settings.solver_options)
        accuracy = {} if self.accuracy is None else {"accuracy": self.accuracy}
        return {
            **(self.settings.solver_options if self.method == "naive" else {}),
            **accuracy,
            **self.method_options,
        }

    def _check_undoing(self) -> None:
        """See that a companion is that of a generation of these settings, as far as they tell."""
        if self.method_options:
            raise SettingsError(
                "with its companion a generation is undone, which takes no options: leave out "
                f"{', '.join(self.method_options)}, or name another method"
            )
        assert self.companion is not None
        settings = self.settings
        told = {
            "solver": settings.solver,
            "options": dict(settings.solver_options),
            "sigmas": settings.sigmas.float().tolist(),
            "extra": settings.flow,
        }
        self.companion.check({**self.companion.settings, **told})


def check_method(settings: Settings, method: str, options: Mapping[str, Any]) -> None:
    """Refuse a method that cannot invert a generation of these settings, before anything is computed.

    Raises:
        FlowError: as `flow.inverting`, which checks all but the data before its first step.
    """
    flow.inverting(lambda x, sigma: x, torch.zeros(1, 1), settings.sigmas, method, settings.solver, **options)


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

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.noise.shape))
        return f"Inverted(noise {shape}, {self.report.method}, {self.report.evaluations} evaluations)"


def invert(model: Model, request: Invert, *, progress: bool = False) -> Inverted:
    """Find the noise of pictures.

    Raises:
        SettingsError: pictures or latents that are none of this model's, before work starts.
        NonFiniteError: a stage computed NaN or infinity.
    """
    source = request.source
    settings = settings_for(model, source, request.settings)
    if request.noise is not None:
        model.check_noise(request.noise, settings)
    with model.at_least(as_dtype(request.dtype)) as widened:
        encodings = model.encode_each(settings)
        settings, steering = steer(model, settings, request.inputs)
        velocity = velocity_of(model.mmdit, settings, encodings, steering)
        latents, losses = latents_of(model, source, request, progress=progress)
        bar = "inverting" if progress else None
        found, report = find_noise(model, velocity, latents, settings, settings.sigmas, request, bar=bar)
        if request.measure:
            again = flow.SOLVERS[settings.solver].run(
                velocity, found, settings.sigmas, **settings.solver_options
            )
            bar = "drawing again" if progress else None
            end = flow.last(take_steps(model, again, settings.sigmas, bar=bar))
            losses["solver"] = closeness(end.x, latents)
        notes = tuple(notes_of(model, report, widened))
    noise = request.noise
    if noise is None and settings.seeds:
        noise = draw_noise(generators(settings.seeds), latents.shape[1:])
    if noise is not None:
        losses["noise"] = closeness(found.cpu(), noise)
    other = () if source.saved is None else differences(source.saved, settings, losses.get("noise"))
    return Inverted(
        noise=found.detach().cpu(),
        latents=latents.detach().cpu(),
        settings=settings,
        report=report,
        losses=losses,
        notes=(*source.notes, *request.inputs.notes, *other, *notes),
    )


def find_noise(
    model: Model,
    velocity: GuidedVelocity,
    latents: Tensor,
    settings: Settings,
    sigmas: Tensor,
    how: Invert,
    *,
    bar: str | None,
) -> tuple[Tensor, Report]:
    """Find the noise that leads to latents, as `flow.inversion`, with a bar.

    Args:
        model: whose velocity it is.
        velocity: of the settings.
        latents: (B, 16, h, w).
        settings: of the generation.
        sigmas: the part of its noise levels that is inverted, to the end.
        how: method, options and companion.
        bar: as in `take_steps`.
    """
    steps = flow.inverting(
        velocity,
        latents,
        sigmas,
        how.method,
        settings.solver,
        companion=how.companion if how.undoes else None,
        extra=settings.flow,
        **how.options,
    )
    reports, x = [], latents
    for step in take_steps(model, steps, sigmas, bar=bar):
        x = step.x
        reports.append(step.report)
    return x, Report("undo" if how.undoes else how.method, settings.solver, tuple(reports))


def notes_of(model: Model, report: Report, widened: torch.dtype | None) -> Iterator[str]:
    """What stands between the noise and belief."""
    yield from report.problems
    if report.method == "undo":
        return
    if widened is not None:
        name = str(widened).removeprefix("torch.")
        yield (
            f"computed in float32, from weights that were loaded in {name}: where the files hold more, load "
            "the model in float32 to invert"
        )
    elif model.dtype != torch.float32:
        name = str(model.dtype).removeprefix("torch.")
        yield (
            f"the transformer computes in {name}, whose rounding the way back multiplies: "
            "load the model in float32 to invert"
        )
