"""Drawing pictures that bear a mark in their noise, and finding it again in the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from textenc.prompt import PromptLike

from .. import fields
from ..errors import SettingsError
from ..marks import FOUND, MARKS, shares_as_good
from ..methods import Marking
from ..model import Model
from ..noise import draw_noise, generators
from ..presets import UNKNOWN, Variant
from ..saved.result import Result
from ..settings import Settings
from .generate import Generate, Generation
from .invert import Invert, invert
from .source import Data, split_by_table

OF_FINDING = ("steps", "schedule", "schedule_shift", "least_ratio", "batch_size", "fit", "width", "height")
"""Settings of a generation that finding a mark has a use for: it follows no prompt and no guidance."""


@dataclass(frozen=True, kw_only=True)
class Put(Marking):
    """A request to draw pictures that bear a mark; picture k of several has the key + k."""

    settings: Settings

    @classmethod
    def of(
        cls,
        prompt: PromptLike | Sequence[PromptLike],
        given: Mapping[str, Any] | None = None,
        *,
        variant: Variant = UNKNOWN,
    ) -> "Put":
        """The request of what a user gave; `variant` is as in `Generate.of`.

        Raises:
            SettingsError: as `Generate.of`, a key out of range, or an image to begin with.
        """
        own, of_generation = split_by_table(cls, dict(given or {}))
        settings = Generate.of(prompt, of_generation, variant=variant).settings
        if settings.image:
            raise SettingsError(
                "an image takes the place of a part of the noise, and of the mark in it: leave it out"
            )
        return cls(settings=settings, **own)

    def request(self, model: Model) -> Generate:
        """The generation from noise with the mark.

        Raises:
            SettingsError: a key out of range, what the model cannot draw, a solver that draws noise itself.
        """
        settings = model.complete(self.settings)
        shape = model.latents_shape(settings.width, settings.height)
        plain = draw_noise(generators(settings.seeds), shape)
        noise = MARKS[self.mark](shape).hide(plain, range(self.key, self.key + len(plain)))
        return Generate.of(None, {}, base=self.settings, noise=noise)


def put(model: Model, request: Put, *, progress: bool = False) -> Result:
    """Draw pictures that bear a mark.

    Raises:
        SettingsError: as `Put.request`.
    """
    return Generation(model, request.request(model), bar="" if progress else None).run()


@dataclass(frozen=True)
class Sought:
    """Whether pictures bear the mark of a key."""

    noise: Tensor
    """(B, 16, h, w), what was found; see `again`."""
    shares: Tensor
    """(B,), the share of keys that agree with a picture's noise as well as this one does, itself included: of
    pictures without the mark, one in a hundred is at most 0.01."""
    sought: Marking
    """The mark, and the key of the first picture."""

    @property
    def found(self) -> tuple[bool, ...]:
        """For each picture, whether the share is small enough."""
        return tuple((self.shares <= FOUND).tolist())

    def again(self, **given: Any) -> "Sought":
        """Look for another `key` or another `mark` in the same noise: that costs nothing.

        Raises:
            SettingsError: a key out of range, no such mark, or another setting.
        """
        own, others = split_by_table(Marking, given)
        if others:
            raise SettingsError(f"{', '.join(others)}: key and mark alone can be others in the same noise")
        return _look(self.noise, replace(self.sought, **own))


def find(
    model: Model, data: Data, given: Mapping[str, Any] | None = None, *, progress: bool = False
) -> Sought:
    """Look for the mark of a key in pictures, as one who does not know how they were drawn.

    Their noise is found by the flipped Euler method, without prompt and without guidance: from a saved
    picture that keeps more of a mark than inverting with them does.

    Args:
        model: that drew the pictures.
        data: pictures, latents, a state, or a path.
        given: the settings of `Marking`, `steps` and `schedule` by name.
        progress: show a bar on stderr.

    Raises:
        SettingsError: a key out of range, or pictures that are none of this model's.
    """
    own, others = split_by_table(Marking, dict(given or {}))
    if idle := sorted(others.keys() - set(OF_FINDING)):
        raise SettingsError(
            f"{', '.join(idle)} has no effect here: a mark is looked for without prompt and without guidance"
        )
    how = Marking(**own)  # what is wrong is refused before the work
    blind = {
        "solver": "euler",
        "solver_options": {},
        "guidance_scale": 1.0,
        "method": "naive",
    }
    inverted = invert(model, Invert.of(data, "", {**blind, **others, "measure": False}), progress=progress)
    return _look(inverted.noise, how)


def _look(noise: Tensor, how: Marking) -> Sought:
    """Compare noise with the mark that each of its pictures should have."""
    keys = range(how.key, how.key + len(noise))
    return Sought(noise, shares_as_good(MARKS[how.mark](noise.shape[1:]), noise, keys), how)


def check_marking(given: Mapping[str, Any]) -> None:
    """See that settings of `Marking` can be worked with, before a model is loaded.

    Raises:
        SettingsError: they cannot.
    """
    fields.check(Marking(**split_by_table(Marking, dict(given))[0]))
