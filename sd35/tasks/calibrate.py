"""A table of noise levels for a model, its prompts and its guidance: the request, and making it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

import flow
from flow.calibrate import FINE
from flow.search import check_searched
from textenc.prompt import PromptLike

from .. import fields
from ..cache import windows_of
from ..errors import SettingsError
from ..methods import NOT_CALIBRATED, Calibrating
from ..model import Model
from ..noise import draw_noise, generators
from ..presets import UNKNOWN, Variant, usual_numbers
from ..settings import Settings, settings_of
from ..velocity import velocity_of
from .source import split_by_table


@dataclass(frozen=True, kw_only=True)
class Calibrate(Calibrating):
    """A request to find the noise levels of so many steps of a solver; see `flow.calibrate`.

    Raises:
        SettingsError: settings that a calibration has no use for, or more steps than the fine table can be
            thinned to.
        FlowError: a solver whose table cannot be searched.
    """

    settings: Settings
    """Prompts, guidance, seed and steps of the generations that the table is for."""
    notes: tuple[str, ...] = ()
    """What a user should know of the request itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.settings.guidance.skip_layer is not None or self.settings.guidance.zero_steps:
            raise SettingsError(
                "skip_layer and zero_steps act in some steps of a table, and this one is not yet known: "
                "calibrate without"
            )
        check_searched(self.settings.solver)
        if self.settings.steps > FINE - 2:
            raise SettingsError(
                f"steps must be at most {FINE - 2}: a table is chosen from {FINE} levels; "
                f"got {self.settings.steps}"
            )

        if self.budget is not None and self.budget > self.settings.steps:
            raise fields.fault(
                self, ["budget"], f" must be at most {self.settings.steps}, the steps; got {self.budget}"
            )
        ends = sum((low > 0) + (high < 1) for low, high in windows_of(self.settings))
        if self.budget is not None and self.budget <= ends:
            why = f" must be at least {1 + ends}, the first step and that after each end of guidance"
            raise fields.fault(self, ["budget"], f"{why}; got {self.budget}")

    @classmethod
    def of(
        cls,
        prompt: PromptLike | Sequence[PromptLike],
        given: Mapping[str, Any] | None = None,
        *,
        variant: Variant = UNKNOWN,
    ) -> "Calibrate":
        """The request of what a user gave, see `Pipeline.calibrate`.

        `variant` is as in `Generate.of`.

        Raises:
            SettingsError: as the class; and a setting without effect.
        """
        own, of_generation = split_by_table(cls, dict(given or {}))
        if idle := [name for name in NOT_CALIBRATED if name in of_generation]:
            raise SettingsError(f"{', '.join(idle)}: not of a calibration, which decides them")
        for_any = own.get("calibration") == "search"
        if "solver" in of_generation and not for_any:
            raise SettingsError(
                "solver has an effect only with the calibration search: the others are for euler"
            )
        # The reference guides medium by skipping layers, which needs a table that is known.
        idle_here = (*NOT_CALIBRATED, "skip_layer", *(() if for_any else ("solver",)))
        numbers, notes = usual_numbers(of_generation, variant, but=idle_here)
        settings = settings_of({"prompts": prompt, **of_generation}, None, numbers)
        request = cls(settings=settings, notes=notes, **own)
        fields.refuse_idle(request, own)
        return request


def calibrate(model: Model, request: Calibrate, *, progress: bool = False) -> flow.Calibration:
    """Find a table of noise levels.

    Raises:
        SettingsError: what the model cannot draw, before work starts.
        FlowError: the transformer gave NaN or infinity.
    """
    settings = model.complete(request.settings)
    velocity = velocity_of(model.mmdit, settings, model.encode_each(settings))
    shape = model.latents_shape(settings.width, settings.height)
    noise = draw_noise(generators(settings.seeds), shape).to(model.device)
    teacher = flow.sigmas(FINE, settings.schedule_shift, "tailed")
    evaluations = 0
    with tqdm(desc="calibrating", unit="evaluation", disable=not progress) as bar:

        def told(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            bar.update()
            return velocity(x, sigma)

        found = flow.calibrate(
            told,
            noise,
            settings.steps,
            method=request.calibration,
            solver=settings.solver,
            fine=teacher,
            least_ratio=request.bound,
            windows=windows_of(settings),
            settings=fields.plain(settings),
        )
        if request.budget is None:
            return found
        windows = windows_of(settings)
        chosen = flow.choose_steps(told, noise, found.table, request.budget, windows=windows)
        return replace(found, computed=chosen, evaluations=evaluations)
