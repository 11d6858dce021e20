"""How pictures are inverted and edited: the settings of these tasks beside those of a generation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from . import fields
from .fields import setting
from .inputs import PictureSettings
from .kinds import Name, Number, Numbers, Options, Switch, Whole
from .prompts import Prompts

EditMethod = Literal["inversion", "direct_edit", "flow_edit", "rf_inversion"]
EDITS: Mapping[str, str] = {
    "inversion": "find the picture's noise under its own prompt, and draw from it under the other",
    "direct_edit": "record the way up, and draw under the other along the recording (DirectEdit, "
    "arXiv:2605.02417)",
    "flow_edit": "find no noise: follow the difference of the two flows (FlowEdit, arXiv:2412.08629)",
    "rf_inversion": "find noise without a prompt, bent to be typical, and draw from it while being held near "
    "the picture (RF-Inversion, arXiv:2410.10792)",
}
"""The ways to edit, and what each does."""
Precision = Literal["float32", "model"]
RefineBy = Literal["gradient", "encoder"]
CalibrationMethod = Literal["optimal_steps", "acceleration", "search"]

NOT_CALIBRATED = (
    *("schedule", "least_ratio", "images_per_prompt", "solver_options"),
    *("cache", "cache_threshold"),
    *fields.table(PictureSettings),
)
"""Settings of a generation that a calibration decides by itself, or has no use for."""


def inverses() -> tuple[str, ...]:
    """The names of the ways back to noise."""
    import flow

    return tuple(flow.METHODS)


WITH_SOURCE = {
    "acts": lambda one: one.method != "rf_inversion",
    "where": "with inversion, direct_edit and flow_edit",
}
"""In which edits a setting of the picture as it is has an effect."""


@dataclass(frozen=True, kw_only=True)
class Computing:
    """What the two tasks that find noise are computed in."""

    precision: Precision = setting(
        "float32",
        Name.of(Precision),
        "what is computed in where nothing is undone: float32, since the way back multiplies rounding, or "
        "model: as it was loaded, in less memory",
        decides="flow",
        acts=lambda one: not one.undoes,
        where="where no generation is undone from its companion",
    )

    def __post_init__(self) -> None:
        fields.check(self)

    @property
    def undoes(self) -> bool:
        """Whether a generation is undone from its companion."""
        return False

    @property
    def dtype(self) -> str | None:
        """What is computed in, if not in the model's own: undoing repeats the generation's velocities."""
        return None if self.undoes or self.precision == "model" else "float32"


@dataclass(frozen=True, kw_only=True)
class Inverting(Computing):
    """How noise is found."""

    method: str = setting(
        "exact",
        Name(inverses),
        "exact, which undoes reversible solvers, naive, fireflow, ...; `sd35 list methods` has them all",
        decides="flow",
    )
    accuracy: float | None = setting(
        None,
        Number(0, open=True),
        "of the exact method (1e-4 where nothing is said); smaller costs more evaluations",
        decides="flow",
        acts=lambda one: one.method == "exact" and not one.undoes,
        where="with the exact method, where no generation is undone",
    )
    method_options: Mapping[str, Any] = setting(
        factory=dict,
        kind=Options(),
        help="another option of the method, as iterations=4; may be repeated",
        decides="flow",
        option="--method-option",
    )
    refine_steps: int = setting(
        0, Whole(0), "improve the latents of a picture by so many steps of optimisation", decides="start"
    )
    refine_by: RefineBy = setting(
        "gradient",
        Name.of(RefineBy),
        "gradient, of the decoder, or encoder: without gradients, in less time and memory, and less near",
        decides="start",
        acts=lambda one: one.refine_steps > 0,
        where="with refine_steps",
    )
    measure: bool = setting(
        True,
        Switch(),
        "decode the latents and draw again from the noise, to see what the autoencoder and the inverse lose",
        decides="output",
    )


@dataclass(frozen=True, kw_only=True)
class Editing(Computing):
    """How a picture is edited; `EDITS` tells the methods."""

    method: EditMethod = setting(
        "inversion",
        Name.of(EditMethod),
        "inversion, direct_edit, flow_edit or rf_inversion",
        decides="flow",
    )
    strength: float = setting(
        1.0,
        Number(0, 1, open=True),
        "how much of the schedule to run, above 0 to 1; less keeps more of the picture",
        decides="start",
    )
    source_prompt: Any = setting(
        None,
        Prompts(),
        "of the picture as it is, where it does not carry its own",
        decides="flow",
        **WITH_SOURCE,
    )
    source_guidance_scale: float | None = setting(
        None,
        Number(),
        "that of the picture where it carries its own, else --guidance-scale",
        decides="flow",
        **WITH_SOURCE,
    )
    accuracy: float | None = setting(
        None,
        Number(0, open=True),
        "inversion: of the exact inverse (1e-4 where nothing is said); smaller costs more evaluations",
        decides="flow",
        acts=lambda one: one.inverse == "exact" and not one.undoes,
        where="with the method inversion, of a one-step solver such as euler",
    )
    average: int = setting(
        1,
        Whole(),
        "flow_edit: noises that a step averages over",
        decides="flow",
        acts=lambda one: one.method == "flow_edit",
        where="with flow_edit",
    )
    gamma: float = setting(
        0.5,
        Number(0, 1),
        "rf_inversion: γ, pull toward typical noise; 1 goes straight to it and forgets the picture",
        decides="flow",
        acts=lambda one: one.method == "rf_inversion",
        where="with rf_inversion",
    )
    eta: float = setting(
        0.9,
        Number(0, 1),
        "rf_inversion: η, pull toward the picture; 1 returns to it",
        decides="flow",
        acts=lambda one: one.method == "rf_inversion" and one.pulls,
        where="with rf_inversion, where the edit begins above the low end of eta_interval",
    )
    eta_interval: tuple[float, float] = setting(
        (0.75, 1.0),
        Numbers(("LOW", "HIGH"), levels=True),
        "rf_inversion: noise levels at which it pulls toward the picture; the early ones keep the layout",
        decides="flow",
        acts=lambda one: one.method == "rf_inversion" and one.eta != 0 and one.pulls,
        where="with rf_inversion, an η above 0, and where the edit begins above its low end",
    )

    @property
    def pulls(self) -> bool:
        """Whether the edit passes noise levels at which η acts."""
        return True

    @property
    def inverse(self) -> str | None:
        """The method of `flow.invert` that is used; None where nothing is inverted."""
        return None


@dataclass(frozen=True, kw_only=True)
class Calibrating:
    """How a table of noise levels is found."""

    calibration: CalibrationMethod = setting(
        "optimal_steps",
        Name.of(CalibrationMethod),
        "optimal_steps, by dynamic programming, or acceleration, which is quicker and not as near, both for "
        "euler; or search, by least squares, for the solver that is named: fireflow ends nearest",
        decides="flow",
    )
    bound: float | None = setting(
        None,
        Number(0, 0.9, open=True),
        "what a step leaves of the noise level, at least, so that what is drawn can be inverted; 0.4 will do",
        decides="flow",
    )
    budget: int | None = setting(
        None,
        Whole(),
        "find also which of the steps to compute, so many of them, for `sd35 generate --cache`; the first "
        "after an end of a guidance interval is always one",
        decides="speed",
        acts=lambda one: one.calibration != "search",
        where="with the calibrations optimal_steps and acceleration",
    )

    def __post_init__(self) -> None:
        fields.check(self)


def marks() -> tuple[str, ...]:
    """The names of the marks."""
    from .marks import MARKS

    return tuple(MARKS)


@dataclass(frozen=True, kw_only=True)
class Marking:
    """How noise is marked."""

    key: int = setting(
        kind=Whole(0, 2**32 - 1000), help="the secret number that decides the mark", decides="start"
    )
    mark: str = setting("tree_rings", Name(marks), "tree_rings or gaussian_shading", decides="start")

    def __post_init__(self) -> None:
        fields.check(self)
