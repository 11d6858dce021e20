"""From a picture under one prompt to a picture under another; `sd35.methods.Editing` names the ways.

The mathematics of three of them is `flow.direct_edit`, `flow.flow_edit`, and `flow.toward_noise` with
`flow.toward_data`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import flow
from flow import Companion
from flow.solvers.runge_kutta import SLOPES
from textenc.prompt import PromptLike

from .. import fields
from ..conditions import Condition
from ..device import as_dtype
from ..errors import SettingsError
from ..guidance import PLAIN
from ..methods import Editing
from ..model import Model
from ..noise import draw_noise, generators
from ..presets import UNKNOWN, Variant
from ..prompts import Prompts
from ..settings import Settings, settings_of
from ..velocity import GuidedVelocity, velocity_of
from .edited import Edited
from .inputs import NOTHING, Inputs, still_idle
from .invert import Invert, find_noise, notes_of
from .source import (
    Data,
    Source,
    open_with_inputs,
    same_flow,
    settings_for,
    source_settings,
    split_by_table,
)
from .steer import steer
from .steps import take_steps

OF_TARGET = ("seed", "guidance_scale", "guidance", "negative")
"""Settings that are given for the second half; the first follows where the picture carries none."""


@dataclass(frozen=True, kw_only=True)
class Edit(Editing):
    """A request to edit pictures, checked as far as it can be without a model.

    Raises:
        SettingsError: settings that do not fit each other or what is there.
        FlowError: what the inverse refuses.
    """

    source: Source
    before: Settings
    """What leads to the pictures as they are."""
    after: Settings
    """What is wanted."""
    companion: Companion | None = None
    """Of a reversible solver, for the method inversion at strength 1."""
    inputs: Inputs = NOTHING
    """The pictures of the ControlNets of both halves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.refuse_idle(self, fields.changed(self))
        if self.companion is not None and not (self.method == "inversion" and self.strength == 1):
            raise SettingsError(
                "a companion is of use to the method inversion at strength 1 only: leave it out"
            )
        if self.method in ("inversion", "rf_inversion") and flow.SOLVERS[self.before.solver].stochastic:
            raise SettingsError(
                f"{self.before.solver} draws noise at every step: an edit needs a solver without"
            )
        if self.after.seed is None:
            raise SettingsError("the settings of an edit need a seed, from which some methods draw noise")
        if self.after.images != self.source.count:
            raise SettingsError(
                f"expected a prompt for each of {self.source.count} pictures, got {self.after.images}"
            )
        if self.inverse is not None:
            _ = self.inverting

    @classmethod
    def of(
        cls,
        data: Data,
        prompt: PromptLike | Sequence[PromptLike],
        source_prompt: PromptLike | Sequence[PromptLike] | None = None,
        given: Mapping[str, Any] | None = None,
        *,
        companion: Companion | None = None,
        variant: Variant = UNKNOWN,
    ) -> "Edit":
        """The request of what a user gave, see `Pipeline.edit`; `variant` as in `Generate.of`.

        Raises:
            OSError: there is no such file.
            SettingsError: as the class; and a setting without effect.
        """
        own, shared = split_by_table(cls, dict(given or {}))
        if source_prompt is not None:
            own["source_prompt"] = source_prompt
        source, shared, inputs = open_with_inputs(data, shared)
        given_before = _of_source(source, own, shared)
        before, notes = source_settings(source, given_before, variant=variant)
        source = replace(source, notes=(*source.notes, *notes))
        base = before
        if (
            source.saved is None and own.get("source_guidance_scale") is not None
        ):  # which is not the new one's
            of_both = _of_source(source, {**own, "source_guidance_scale": None}, shared)
            base, _ = source_settings(source, of_both, variant=variant)
        target = {name: value for name, value in shared.items() if name in OF_TARGET}
        after = settings_of({"seed": before.seed or 0, **target, "prompts": prompt}, base)
        one_for_all = len(after.prompts) == 1
        after = replace(after, images_per_prompt=source.count if one_for_all else 1)
        how = Editing(**own)
        if (
            companion is None
            and how.method == "inversion"
            and how.strength == 1
            and same_flow(before, source.saved)
        ):
            companion = source.companion
        request = cls(source=source, before=before, after=after, companion=companion, inputs=inputs, **own)
        fields.refuse_idle(request, own)
        request.refuse_idle(shared)
        return request

    def refuse_idle(self, given: Mapping[str, Any]) -> None:
        """Refuse settings of a generation that have no effect in this edit.

        Raises:
            SettingsError: one of those given has none.
        """
        seed = (("seed",), "with flow_edit and rf_inversion, which draw noise")
        solver = (("solver", "solver_options"), "with inversion and rf_inversion")
        idle = {"inversion": [seed], "direct_edit": [seed, solver], "flow_edit": [solver]}
        left_out = flow.start_step(self.before.steps, self.strength)
        if "guidance" in given and 0 < self.after.guidance.zero_steps <= left_out:
            raise still_idle(self.after, self.strength, left_out)
        for names, where in idle.get(self.method, []):
            if named := [name for name in names if name in given]:
                raise fields.idle(self.after, named[0], where)

    @property
    def undoes(self) -> bool:
        """Whether a generation is undone from its companion."""
        return self.companion is not None

    @property
    def pulls(self) -> bool:
        """Whether the edit passes noise levels at which η acts."""
        return bool(self.sigmas[0] > self.eta_interval[0])

    @property
    def inverse(self) -> str | None:
        """The method of `flow.invert`: exact where the solver's steps can be solved for where they began."""
        if self.method != "inversion":
            return None
        return "exact" if self.undoes or self.before.solver in SLOPES else "naive"

    @cached_property
    def inverting(self) -> Invert:
        """The first half of the method inversion."""
        assert self.inverse is not None
        return Invert(
            source=self.source,
            settings=self.before,
            companion=self.companion,
            method=self.inverse,
            precision=self.precision,
            accuracy=None if self.undoes else self.accuracy,
        )

    @property
    def sigmas(self) -> Tensor:
        """The noise levels that the edit runs through, from where its strength begins to 0."""
        return self.before.sigmas[flow.start_step(self.before.steps, self.strength) :]


def _of_source(source: Source, own: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are given for the first half."""
    given = {name: value for name, value in shared.items() if name not in OF_TARGET}
    if source.saved is None:
        given |= {name: value for name, value in shared.items() if name in OF_TARGET and name != "seed"}
    if own.get("source_guidance_scale") is not None:
        given["guidance_scale"] = own["source_guidance_scale"]
        if given["guidance_scale"] == 1:  # without guidance, what it is away from and how has no part in it
            given = {name: value for name, value in given.items() if name not in ("negative", "guidance")}
    if own.get("source_prompt") is not None:
        given["prompts"] = Prompts().check("source_prompt", own["source_prompt"])
    elif source.saved is None and own.get("method") == "rf_inversion":
        given["prompts"] = ""  # its way up follows no prompt
    return given


def edit(model: Model, request: Edit, *, progress: bool = False) -> Edited:
    """Draw pictures again under another prompt.

    Raises:
        SettingsError: pictures or latents that are none of this model's, before work starts.
        NonFiniteError: a stage computed NaN or infinity.
    """
    source, before = request.source, settings_for(model, request.source, request.before)
    after = model.complete(replace(request.after, width=before.width, height=before.height))
    with model.at_least(as_dtype(request.dtype)) as widened:
        if source.image is None:
            latents = source.data.detach().float().to(model.device)
        else:
            latents = model.encode_image(source.image)
        before, steering = steer(model, before, request.inputs)
        after = replace(after, control=before.control)
        bar = "inverting" if progress else None
        run = _Run(model, request, latents, before, after, steering, widened, bar)
        steps, notes = getattr(run, request.method)()
        for step in take_steps(model, steps, request.sigmas, bar="" if progress else None):
            latents = step.x
        notes = (*source.notes, *request.inputs.notes, *notes)
        return Edited(model.decode(latents).detach().cpu(), latents.detach().cpu(), after, notes)


Way = tuple[Iterator[flow.Step], tuple[str, ...]]
"""The last steps of an edit, and what a user should know."""


@dataclass(frozen=True)
class _Run:
    """An edit under way: each method gives the steps that are left when it has found where to begin."""

    model: Model
    request: Edit
    latents: Tensor
    before: Settings
    after: Settings
    steering: Sequence[Condition]
    widened: torch.dtype | None
    bar: str | None

    def inversion(self) -> Way:
        """The way down under the target from the noise that leads to the latents under the source."""
        how, sigmas = self.request.inverting, self.request.sigmas
        noise, report = find_noise(
            self.model, self._velocity(self.before), self.latents, self.before, sigmas, how, bar=self.bar
        )
        notes = tuple(notes_of(self.model, report, self.widened))
        if how.method == "naive":
            solver = self.before.solver
            notes = (
                f"{solver} cannot be undone from its last state alone: its inverse is approximate",
                *notes,
            )
        return self._drawing(self._velocity(self.after), noise, sigmas), notes

    def direct_edit(self) -> Way:
        """DirectEdit: down under the target along what was recorded on the way up."""
        before, after = self._velocity(self.before), self._velocity(self.after)
        return flow.direct_edit(before, after, self.latents, self.request.sigmas), ()

    def flow_edit(self) -> Way:
        """FlowEdit: the difference of the two flows."""
        steps = flow.flow_edit(
            self._velocity(self.before),
            self._velocity(self.after),
            self.latents,
            self.request.sigmas,
            generator=generators(self.after.seeds),
            average=self.request.average,
        )
        return steps, ()

    def rf_inversion(self) -> Way:
        """RF-Inversion: up without prompt and guidance, down with the prompt, held near the latents."""
        how, sigmas, notes = self.request, self.request.sigmas, ()
        if not how.pulls:
            notes = (
                f"at strength {how.strength:g} the edit begins at noise level {float(sigmas[0]):.3g}; η acts "
                f"from {how.eta_interval[0]:g} up, which is never: nothing pulls toward the picture",
            )
        count = len(self.latents)
        nothing = replace(
            self.after,
            prompts=(self.after.negative,),
            images_per_prompt=count,
            guidance_scale=1.0,
            guidance=PLAIN,
        )
        typical = draw_noise(generators(self.after.seeds), self.latents.shape[1:]).to(self.latents)
        upward = flow.toward_noise(self._velocity(nothing), typical, how.gamma)
        downward = flow.toward_data(self._velocity(self.after), self.latents, how.eta, how.eta_interval)
        rising = self._drawing(upward, self.latents, sigmas.flip(0))
        noise = flow.last(take_steps(self.model, rising, sigmas, rising=True, bar=self.bar)).x
        return self._drawing(downward, noise, sigmas), notes

    def _drawing(self, velocity: flow.Velocity, x: Tensor, sigmas: Tensor) -> Iterator[flow.Step]:
        return flow.SOLVERS[self.after.solver].run(velocity, x, sigmas, **self.after.solver_options)

    def _velocity(self, settings: Settings) -> GuidedVelocity:
        return velocity_of(self.model.mmdit, settings, self.model.encode_each(settings), self.steering)
