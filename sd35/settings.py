"""Everything that decides a picture, in a form that can be written into it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from . import fields
from .fields import setting
from .guidance import PLAIN, Guidance, GuidanceKind
from .inputs import PictureSettings
from .kinds import Name, Number, Options, Text, Whole
from .loras import Lora, Loras
from .prompts import Prompts, no_prompt, policies
from .schedules import Cache, Preset, Schedule, of_another_table, of_file, solvers
from .units import SIZE_UNIT

if TYPE_CHECKING:
    from torch import Tensor

    from textenc import Prompt

FORMAT = "sd35.Settings"
VERSION = 1
"""Goes up when a reader of the version before would make another picture."""

NOT_TAKEN = (
    "images_per_prompt",
    *("image", "strength", "start_rule", "mask", "mask_white", "mask_rule", "paste", "feather"),
    *("cache", "cache_threshold"),
)
"""Settings of a generation that a picture which is there decides by itself, or that make no sense there."""

SEEDS = 2**32
"""Seeds are 0 to 2³² - 1: torch's generator reads the lowest 32 bits, so larger ones would repeat these."""

MOST_STEPS = 10_000  # more is a mistake: the error of every solver is at rounding long before

Missing = Literal["zeros", "drop"]


def _is_guided(settings: "Settings") -> bool:
    return settings.guidance_scale != 1


def _guidance_acts(settings: "Settings") -> bool:
    """Whether all that is asked of guidance has an effect; without guidance, `zero_steps` alone has one."""
    steps = settings.guidance.zero_steps
    return _is_guided(settings) or (steps > 0 and settings.guidance == Guidance(zero_steps=steps))


@dataclass(frozen=True, kw_only=True)
class Settings(PictureSettings):
    """What a generation is told, and of what it is made.

    Raises:
        SettingsError: a value that no model could be run with. What depends on the model, the size above all,
            is checked by the pipeline, before it starts to work.
        FlowError: the solver does not take such an option.
    """

    prompts: "tuple[Prompt, ...]" = setting(
        kind=Prompts(), help="what to draw", decides="flow", is_option=False
    )
    negative: "Prompt" = setting(
        factory=no_prompt,
        kind=Prompts(several=False),
        help="what to move away from; the empty text by default, as in training",
        decides="flow",
        acts=_is_guided,
        where="with a guidance scale other than 1",
    )
    seed: int | None = setting(
        0,
        Whole(0, SEEDS - 1),
        "of the noise, 0 to 4294967295; image k of several has the seed + k",
        decides="start",
        may_be_none=True,
    )
    steps: int = setting(
        28, Whole(1, MOST_STEPS), "steps of the solver; released models have their own", decides="flow"
    )
    guidance_scale: float = setting(
        4.5,
        Number(),
        "how strongly to follow the prompt; 1 is no guidance, at half the cost",
        decides="flow",
        also="--cfg",
    )
    guidance: Guidance = setting(
        PLAIN,
        GuidanceKind(),
        "how guidance is done",
        decides="flow",
        is_option=False,
        acts=_guidance_acts,
        where="with a guidance scale other than 1",
    )
    width: int | None = setting(
        None,
        Whole(1, multiple=SIZE_UNIT),
        "in pixels, a multiple of 16; the size that the model was trained at by default",
        decides="start",
    )
    height: int | None = setting(None, Whole(1, multiple=SIZE_UNIT), "in pixels, likewise", decides="start")
    images_per_prompt: int = setting(
        1, Whole(), "pictures of each prompt, one after the other", decides="start", also="--batch"
    )
    solver: str = setting(
        "euler",
        Name(solvers),
        "how steps are taken: euler, midpoint, heun, dpmpp_2m, ...; `sd35 list solvers` has them all",
        decides="flow",
    )
    solver_options: Mapping[str, Any] = setting(
        factory=dict,
        kind=Options(),
        help="an option of the solver, as rtol=1e-4 of dopri5; may be repeated",
        decides="flow",
        option="--solver-option",
    )
    schedule: str | tuple[float, ...] = setting(
        "reference",
        Schedule(),
        "table of noise levels: reference, diffusers, linear, tailed (which can be inverted), or a file of "
        "`sd35 calibrate`, which brings the solver that it was made for",
        decides="flow",
    )
    schedule_shift: float = setting(
        3.0,
        Number(0, open=True),
        "how far the noise levels are bent toward noise",
        decides="flow",
        acts=lambda one: isinstance(one.schedule, str),
        where="with a schedule that has a name",
    )
    least_ratio: float | None = setting(
        None,
        Number(0, 0.5, open=True),
        "of the tailed schedule: what a step leaves of the noise level, at least (0.4 where nothing is said)",
        decides="flow",
        acts=lambda one: one.schedule == "tailed",
        where="with the schedule tailed",
    )
    cache: str | tuple[int, ...] = setting(
        "none",
        Cache(),
        "use again what was computed at the last noise levels: none, velocity (as a whole), block (all but "
        "the first), the steps that are computed, as 0,1,4, or the file of `sd35 calibrate --budget` that is "
        "--schedule too",
        decides="speed",
    )
    cache_threshold: float | None = setting(
        None,
        Number(0, open=True),
        "relative change at which a step is computed (0.05 of velocity, 0.1 of block where nothing is said)",
        decides="speed",
        acts=lambda one: one.cache in ("velocity", "block"),
        where="with the cache velocity or block",
    )
    policy: str = setting(
        "reference",
        Name(policies),
        "how prompts are read: reference, diffusers or reference-exact",
        decides="flow",
    )
    missing: Missing = setting(
        "zeros",
        Name.of(Missing),
        "what stands for a text encoder that is not there: zeros or drop",
        decides="flow",
    )
    loras: tuple[Lora, ...] | None = setting(
        None,
        Loras(),
        "a LoRA (LoHa, LoKr, DoRA) at a scale (1 by default); may be repeated; none leaves out a picture's",
        decides="flow",
        option="--lora",
    )
    batch_size: int = setting(
        1,
        Whole(),
        "pictures that go through the transformer together; more may be faster, and differ by rounding",
        decides="speed",
    )
    model: str = setting("", Text(), "the source it was loaded from", decides="record", is_option=False)
    made_with: Mapping[str, str] = setting(
        factory=dict, kind=Options(), help="see below", decides="record", is_option=False
    )
    """The versions "sd35" and "torch"; "device"; "t5", yes or no; "dtype", the transformer's; "vae_dtype",
    "clip_l_dtype", "clip_g_dtype" and "t5_dtype" where theirs differs; "vae_source", "text_encoders_source",
    "clip_l_source", ... where these came from elsewhere than `model`; "weights", a hash of the headers;
    "compiled", "products" and "tile" where something other than the usual was computed."""

    def __post_init__(self) -> None:
        from flow import SOLVERS
        from flow.solvers.table import check_options

        fields.check(self)
        if self.seed is not None and self.seed > SEEDS - self.images:
            last = f" (image k of {self.images} has the seed + k)" if self.images > 1 else ""
            text = f" must be 0 to {SEEDS - self.images}{last}, got {self.seed!r}"
            raise fields.fault(self, ["seed"], text)
        if isinstance(self.schedule, tuple) and self.steps != len(self.schedule) - 1:
            text = f" must be {len(self.schedule) - 1}, those of the schedule; got {self.steps}"
            raise fields.fault(self, ["steps"], text)
        if isinstance(self.cache, tuple) and max(self.cache) >= self.steps:
            raise fields.fault(self, ["cache"], f" names steps of 0 to {self.steps - 1}, got {self.cache}")
        check_options(f"solver {self.solver!r}", SOLVERS[self.solver].run, self.solver_options)

    @property
    def images(self) -> int:
        """How many images are made: those of the first prompt come first."""
        return len(self.prompts) * self.images_per_prompt

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image; empty where the noise was given."""
        return () if self.seed is None else tuple(range(self.seed, self.seed + self.images))

    @property
    def schedule_name(self) -> str:
        """What people call its table of noise levels."""
        return self.schedule if isinstance(self.schedule, str) else "calibrated"

    @property
    def sigmas(self) -> "Tensor":
        """The noise levels, (steps + 1,); see `flow.sigmas`."""
        import torch

        import flow

        if isinstance(self.schedule, tuple):
            return torch.tensor(self.schedule, dtype=torch.float32, device="cpu")
        preset = cast("Preset", self.schedule)
        return flow.sigmas(self.steps, self.schedule_shift, preset, least_ratio=self.least_ratio)

    @property
    def left_out(self) -> int:
        """Steps of the schedule that are not run, in image to image."""
        import flow

        return flow.start_step(self.steps, self.strength, self.start_rule) if self.image else 0

    @property
    def levels(self) -> "Tensor":
        """The noise levels that are run, from the first that is kept to 0."""
        return self.sigmas[self.left_out :]

    @property
    def flow(self) -> dict[str, Any]:
        """What decides the flow that is followed, in JSON values: undoing a generation needs the same.

        The LoRAs are on the pipeline and not here: `Model.complete` sees that they are those of the settings.
        """
        told = fields.deciding(self, "flow")
        del told["loras"]
        told["mask"] = [one.identity for one in self.mask or ()]
        told["control"] = [one.identity for one in self.control or ()]
        return told

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
            **self.pictures_of(index),
        )

    def to_json(self) -> str:
        """One line of JSON, ASCII only, with the format's name and version; `from_json` reads it."""
        return json.dumps({"format": FORMAT, "version": VERSION, **fields.plain(self)})

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Read what `to_json` wrote.

        Raises:
            SettingsError: this is something else, of a later version, or holds values out of range.
        """
        return fields.read(cls, text, FORMAT, VERSION)


def settings_of(
    given: Mapping[str, Any], base: Settings | None = None, numbers: Mapping[str, Any] | None = None
) -> Settings:
    """Settings from what a user gave, over saved ones if there are any.

    Args:
        given: settings by name; `guidance` may be a mapping of those of its fields that are given.
        base: those of an earlier picture.
        numbers: the model's own, where nothing else says what to do; see `presets`.

    Raises:
        SettingsError: a setting that is unknown, out of range, or without effect beside the others.
    """
    given = dict(given)
    if isinstance(given.get("guidance"), Mapping):
        usual = PLAIN if base is None else base.guidance
        if base is None and numbers and given.get("guidance_scale", numbers.get("guidance_scale")) != 1:
            usual = Guidance(**numbers.get("guidance", {}))
        given["guidance"] = replace(usual, **given["guidance"])
    if "schedule" in given:
        given |= of_file(given, base)
        told = fields.table(Settings)["schedule"]
        given["schedule"] = fields.checked(told, "schedule", given["schedule"])
        if isinstance(given["schedule"], tuple):
            given.setdefault("steps", len(given["schedule"]) - 1)
    settings = fields.build(Settings, given, base, numbers)
    if why := of_another_table(given.get("cache"), settings.schedule):
        raise fields.fault(Settings, ["cache"], why)
    return settings
