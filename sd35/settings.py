"""Everything that decides a picture, in a form that can be written into it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from typing import Any, Literal, get_args

from torch import Tensor

from flow import SOLVERS, sigmas
from flow.schedule import Preset
from flow.solvers.table import check_options
from textenc import POLICIES, Prompt
from textenc.prompt import as_prompts

from .errors import SettingsError
from .guidance import PLAIN, Guidance
from .noise import SEEDS

FORMAT = "sd35.Settings"
VERSION = 1
"""Goes up when a reader of the version before would make another picture."""

SIZE_UNIT = 16
"""Pixels along a side of a token: 8 of the autoencoder, times patches of 2."""

Missing = Literal["zeros", "drop"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a generation is told, and of what it is made.

    Raises:
        SettingsError: a value that no model could be run with. What depends on the model, the size above all,
            is checked by the pipeline, before it starts to work.
        FlowError: the solver does not take such an option.
    """

    prompts: tuple[Prompt, ...]
    negative: Prompt = field(default_factory=Prompt)  # what to move away from; the empty text as in training
    seed: int | None = 0  # of the first image, seed + k of image k; None where the noise was given
    steps: int = 28
    guidance_scale: float = 4.5  # 1 is no guidance, at half the cost
    guidance: Guidance = PLAIN  # how it is done; plain, at all noise levels
    width: int | None = None  # in pixels; None leaves it to the model
    height: int | None = None
    images_per_prompt: int = 1
    solver: str = "euler"  # a name in flow.SOLVERS
    solver_options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Preset = "reference"
    schedule_shift: float = 3.0
    policy: str = "reference"  # how prompts are read, a name in textenc.POLICIES
    missing: Missing = "zeros"  # what stands for an encoder that is not there
    batch_size: int = 1  # images that go through the transformer together
    model: str = ""  # the source it was loaded from
    made_with: Mapping[str, str] = field(default_factory=dict)
    """The versions "sd35" and "torch"; "device"; "t5", yes or no; "dtype", the transformer's; "vae_dtype",
    "clip_l_dtype", "clip_g_dtype" and "t5_dtype" where theirs differs; "vae_source",
    "text_encoders_source", "clip_l_source", ... where these came from elsewhere than `model`."""

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_seed()
        self._check_names()
        self._check_types()
        for name in ("guidance_scale", "schedule_shift"):
            if not _is_number(getattr(self, name)):
                raise SettingsError(f"{name} must be a finite number, got {getattr(self, name)!r}")
        check_options(f"solver {self.solver!r}", SOLVERS[self.solver].run, self.solver_options)
        if self.schedule_shift <= 0:
            raise SettingsError(f"schedule_shift must be positive, got {self.schedule_shift:g}")

    def _check_counts(self) -> None:
        if not self.prompts:
            raise SettingsError("expected at least one prompt, got none; the empty text is a prompt")
        counts = ["steps", "images_per_prompt", "batch_size"]
        counts += [name for name in ("width", "height") if getattr(self, name) is not None]
        for name in counts:
            value = getattr(self, name)
            if not (_is_whole(value) and value >= 1):
                raise SettingsError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("width", "height"):
            side = getattr(self, name) or SIZE_UNIT
            if side % SIZE_UNIT:
                near = max(round(side / SIZE_UNIT), 1) * SIZE_UNIT
                raise SettingsError(
                    f"{name} must be a multiple of {SIZE_UNIT}, got {side}; the nearest is {near}"
                )

    def _check_seed(self) -> None:
        if self.seed is None:
            return
        if not (_is_whole(self.seed) and 0 <= self.seed <= SEEDS - self.images):
            last = f" (image k of {self.images} has the seed + k)" if self.images > 1 else ""
            raise SettingsError(f"seed must be 0 to {SEEDS - self.images}{last}, got {self.seed!r}")

    def _check_names(self) -> None:
        allowed = {
            "solver": tuple(SOLVERS),
            "schedule": get_args(Preset),
            "policy": tuple(POLICIES),
            "missing": get_args(Missing),
        }
        for name, names in allowed.items():
            if getattr(self, name) not in names:
                raise SettingsError(f"{name} must be one of {', '.join(names)}; got {getattr(self, name)!r}")

    def _check_types(self) -> None:
        kinds = {
            "solver_options": Mapping,
            "made_with": Mapping,
            "model": str,
            "negative": Prompt,
            "guidance": Guidance,
        }
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise SettingsError(f"{name} must be a {kind.__name__}, got {getattr(self, name)!r}")

    @property
    def images(self) -> int:
        """How many images are made: those of the first prompt come first."""
        return len(self.prompts) * self.images_per_prompt

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image; empty where the noise was given."""
        return () if self.seed is None else tuple(range(self.seed, self.seed + self.images))

    @property
    def sigmas(self) -> Tensor:
        """The noise levels, (steps + 1,); see `flow.sigmas`."""
        return sigmas(self.steps, self.schedule_shift, self.schedule)

    def of(self, index: int) -> "Settings":
        """The settings that make image `index` of the batch alone.

        Raises:
            IndexError: there is no image of that index.
        """
        index = range(self.images)[index]
        return replace(
            self,
            prompts=(self.prompts[index // self.images_per_prompt],),
            images_per_prompt=1,
            seed=None if self.seed is None else self.seed + index,
        )

    def to_json(self) -> str:
        """One line of JSON, ASCII only, with the format's name and version; `from_json` reads it."""
        described = {one.name: getattr(self, one.name) for one in fields(self)}
        described["prompts"] = [_plain(prompt) for prompt in self.prompts]
        described["negative"] = _plain(self.negative)
        described["guidance"] = self.guidance.to_dict()
        described["solver_options"] = dict(self.solver_options)
        described["made_with"] = dict(self.made_with)
        return json.dumps({"format": FORMAT, "version": VERSION, **described})

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Read what `to_json` wrote.

        Raises:
            SettingsError: this is something else, of a later version, or holds values out of range.
        """
        try:
            described = json.loads(text)
        except ValueError as error:
            raise SettingsError(f"saved settings are damaged: {error}") from error
        if not isinstance(described, dict) or described.pop("format", None) != FORMAT:
            raise SettingsError(f"expected saved settings ({FORMAT}), got something else")
        version = described.pop("version", None)
        if version != VERSION:
            raise SettingsError(f"these settings are of version {version}, and this release reads {VERSION}")
        unknown = sorted(described.keys() - {one.name for one in fields(cls)})
        if unknown or "prompts" not in described:
            raise SettingsError(f"saved settings are damaged: {', '.join(unknown) or 'prompts'}")
        try:
            prompts = as_prompts(described.pop("prompts"))
            (negative,) = as_prompts([described.pop("negative", "")])
            guidance = Guidance.from_dict(described.pop("guidance", {}))
            return cls(prompts=prompts, negative=negative, guidance=guidance, **described)
        except SettingsError:
            raise
        except (TypeError, ValueError) as error:  # a field of another type, a prompt that is none
            raise SettingsError(f"saved settings are damaged: {error}") from error


def _plain(prompt: Prompt) -> str | dict[str, str]:
    """A prompt as JSON: its text, or the fields that are set where encoders have texts of their own."""
    own = {name: text for name, text in asdict(prompt).items() if name != "text" and text is not None}
    return {"text": prompt.text, **own} if own else prompt.text


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
