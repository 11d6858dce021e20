"""Drawing pictures that bear a mark in their noise, and looking for one; `sd35.watermark` has the marks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flow
from flow.solvers.runge_kutta import SLOPES
from textenc.prompt import PromptLike

from .. import fields
from ..errors import SettingsError
from ..methods import Marking
from ..model import Model
from ..noise import draw_noise, generators
from ..saved.result import Result
from ..settings import Settings
from ..watermark import FOUND, MARKS, OTHERS, shares_as_good
from .generate import Generate, generate
from .invert import Invert, invert
from .source import Data, open_source, source_settings, split_by_table

ACCURACY = 0.1
"""Of the exact inverse: enough to find every mark that latents hold (docs/inversion.md)."""


@dataclass(frozen=True, kw_only=True)
class PutMark(Marking):
    """A request to draw pictures that bear a mark, checked as far as it can be without a model.

    Raises:
        SettingsError: a solver that draws noise of its own at every step.
    """

    settings: Settings
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if flow.SOLVERS[self.settings.solver].stochastic:
            raise SettingsError(
                f"{self.settings.solver} draws noise at every step, under which a mark is lost: "
                "choose a solver without"
            )

    @classmethod
    def of(
        cls,
        prompt: PromptLike | Sequence[PromptLike] | None,
        given: Mapping[str, Any],
        *,
        variant: str = "",
        shift: float | None = None,
    ) -> "PutMark":
        """The request of what a user gave; `variant` and `shift` are as in `Generate.of`.

        Raises:
            SettingsError: as the class; and as `Generate.of`.
        """
        own, of_generation = split_by_table(cls, dict(given))
        plain = Generate.of(prompt, of_generation, variant=variant, shift=shift)
        if plain.settings.image:
            raise SettingsError("an image leaves a part of the noise, and of a mark in it: draw without one")
        return cls(settings=plain.settings, notes=plain.notes, **own)


def put_mark(model: Model, request: PutMark, *, progress: bool = False) -> Result:
    """Draw pictures from the noise of their seeds, marked.

    Raises:
        SettingsError: what the model cannot draw, before work starts.
        NonFiniteError: a stage computed NaN or infinity.
    """
    settings = request.settings
    shape = model.latents_shape(settings.width, settings.height)
    mark, keys = MARKS[request.mark](shape), [request.key] * settings.images
    noise = mark.hide(draw_noise(generators(settings.seeds), shape), keys)
    marked = Generate(settings=replace(settings, seed=None), noise=noise, notes=request.notes)
    return generate(model, marked, progress=progress)


@dataclass(frozen=True, kw_only=True)
class FindMark(Marking):
    """A request to look for a mark, checked as far as it can be without a model."""

    inverting: Invert
    """How the noise is found."""

    @classmethod
    def of(
        cls,
        data: Data,
        prompt: PromptLike | Sequence[PromptLike] | None,
        given: Mapping[str, Any],
    ) -> "FindMark":
        """The request of what a user gave; see `Pipeline.find_watermark`.

        Raises:
            OSError: there is no such file.
            SettingsError: as `Invert.of`.
        """
        own, of_generation = split_by_table(cls, dict(given))
        source = open_source(data)
        is_known = source.saved is not None or prompt is not None
        if prompt is not None:
            of_generation["prompts"] = prompt
        elif not is_known:  # as one who meets the picture elsewhere: no prompt is followed
            of_generation = {"prompts": "", "guidance_scale": 1.0, **of_generation}
        settings = source_settings(source, of_generation)
        undone = source.companion is not None
        method = "exact" if undone or (is_known and settings.solver in SLOPES) else "naive"
        accuracy = ACCURACY if method == "exact" and not undone else None
        inverting = Invert(
            source=source,
            settings=settings,
            companion=source.companion,
            method=method,
            accuracy=accuracy,
            measure=False,
        )
        request = cls(inverting=inverting, **own)
        fields.refuse_idle(request, own)
        return request


@dataclass(frozen=True)
class MarkFound:
    """What was looked for, and what share of other keys would have agreed as well, for each picture."""

    mark: str
    key: int
    shares: tuple[float, ...]
    """Of keys, the own one included; 0.001 at the least."""
    notes: tuple[str, ...] = ()

    @property
    def found(self) -> tuple[bool, ...]:
        """For each picture, whether it bears the mark: one in a hundred passes that does not."""
        return tuple(share <= FOUND for share in self.shares)

    def __str__(self) -> str:
        return "\n".join(
            f"{self.mark}, key {self.key}: {'found' if found else 'not found'}; {share:.1%} of {OTHERS + 1} "
            f"keys agree as well, and at most {FOUND:.0%} count as found"
            for share, found in zip(self.shares, self.found, strict=True)
        )


def find_mark(model: Model, request: FindMark, *, progress: bool = False) -> MarkFound:
    """Look for a mark in the noise that pictures or latents are found to come from.

    Raises:
        SettingsError: pictures or latents that are none of this model's, before work starts.
        NonFiniteError: a stage computed NaN or infinity.
    """
    inverted = invert(model, request.inverting, progress=progress)
    noise = inverted.noise
    shares = shares_as_good(MARKS[request.mark](noise.shape[1:]), noise, [request.key] * len(noise))
    return MarkFound(request.mark, request.key, tuple(shares.tolist()), inverted.notes)
