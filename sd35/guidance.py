"""The variants of guidance in `flow`, chosen by values that can be written into a picture."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from . import fields
from .errors import SettingsError
from .fields import setting
from .kinds import Blocks, Kind, Name, Number, Numbers, Whole

if TYPE_CHECKING:
    from torch import Tensor

    from flow import SkipLayer
    from flow.guidance import Adjust, Combine

Rule = Literal["plain", "cfg_zero", "apg"]


@dataclass(frozen=True)
class SkipLayerKind(Kind):
    """`flow.SkipLayer`, or the name of one in `flow.SKIP_LAYER`."""

    argument: ClassVar[Mapping[str, Any]] = {"metavar": "NAME"}

    def check(self, name: str, value: Any) -> "SkipLayer":
        """See `Kind`."""
        import flow

        if isinstance(value, flow.SkipLayer):
            return value
        if isinstance(value, Mapping):
            try:
                return flow.SkipLayer(**{**value, "layers": tuple(value["layers"])})
            except (KeyError, TypeError) as error:
                raise SettingsError(f"{name} is damaged: {error!r}") from error
        if value not in flow.SKIP_LAYER:
            raise SettingsError(f"{name} must be one of {', '.join(flow.SKIP_LAYER)}; got {value!r}")
        return flow.SKIP_LAYER[value]

    def plain(self, value: "SkipLayer") -> dict[str, Any]:
        """See `Kind`."""
        return {**asdict(value), "layers": list(value.layers)}


WITH_APG = {"acts": lambda one: one.rule == "apg", "where": "with the rule apg"}
"""In which guidance a setting has an effect."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """What is made of the velocities with and without the prompt. The defaults are plain guidance.

    At a guidance scale of 1 only `zero_steps` has an effect. The parts compose, in the order of the fields.

    Raises:
        SettingsError: a value out of range, or one that has no effect beside the others.
    """

    rule: Rule = setting(
        "plain",
        Name.of(Rule),
        "how two velocities become one: plain, cfg_zero (CFG-Zero*) or apg (adaptive projected guidance)",
        decides="flow",
        option="--guidance-rule",
    )
    apg_parallel: float = setting(
        0.0,
        Number(),
        "of apg: how much of the part that only saturates is kept; 1 is plain guidance",
        decides="flow",
        **WITH_APG,
    )
    apg_norm: float | None = setting(
        None,
        Number(0, open=True),
        "of apg: the largest norm of what guidance adds to a picture; without a limit by default",
        decides="flow",
        **WITH_APG,
    )
    interval: tuple[float, float] = setting(
        (0.0, 1.0),
        Numbers(("LOW", "HIGH"), levels=True),
        "noise levels that are guided, both ends included; elsewhere a step costs half (arXiv:2404.07724)",
        decides="flow",
        option="--guidance-interval",
    )
    zero_steps: int = setting(
        0,
        Whole(0),
        "first steps in which the state stands still: the other half of CFG-Zero* (arXiv:2503.18886)",
        decides="flow",
    )
    skip_layer: "SkipLayer | None" = setting(
        None,
        SkipLayerKind(),
        "skip-layer guidance, one evaluation more in a window of steps, with the numbers of reference or "
        "diffusers; none by default",
        decides="flow",
    )
    skipped: tuple[int, ...] | None = setting(
        None,
        Blocks(),
        "blocks that skip-layer guidance leaves out, in place of SD3.5-medium's 7 8 9",
        decides="flow",
        acts=lambda one: one.skip_layer is not None,
        where="with skip-layer guidance (skip_layer)",
    )
    rescale: float = setting(
        0.0,
        Number(0, 1),
        "φ of `flow.rescale`, in [0, 1]: how far the spread is brought back to that of the prompt alone",
        decides="flow",
        option="--guidance-rescale",
    )
    threshold: tuple[float, float] | None = setting(
        None,
        Numbers(("PERCENTILE", "BOUND")),
        "dynamic thresholding of the denoised state, as 0.995 3; none by default",
        decides="flow",
        option="--guidance-threshold",
    )

    def __post_init__(self) -> None:
        fields.check(self)
        fields.refuse_idle(self, fields.changed(self))
        if self.skipped is not None and self.skip_layer is not None:
            # One value, where two would have to be compared: the numbers with these blocks.
            object.__setattr__(self, "skip_layer", replace(self.skip_layer, layers=self.skipped))
            object.__setattr__(self, "skipped", None)
        if self.threshold is not None:
            try:
                self._adjustments()
            except ValueError as error:
                raise fields.fault(self, ["threshold"], f" cannot be used: {error}") from error

    def options(self, sigmas: "Tensor") -> dict[str, Any]:
        """Keyword arguments of `GuidedVelocity`.

        Args:
            sigmas: the noise levels of the whole generation, (steps + 1,).

        Raises:
            SettingsError: more steps stand still than there are.
        """
        import flow

        if self.zero_steps >= len(sigmas) - 1:
            fewer = f" must be fewer than the {len(sigmas) - 1} steps, got {self.zero_steps}"
            raise fields.fault(self, ["zero_steps"], fewer)
        rules: dict[str, Combine] = {
            "plain": flow.plain,
            "cfg_zero": flow.cfg_zero,
            "apg": flow.apg(self.apg_parallel, self.apg_norm),
        }
        return {
            "combine": rules[self.rule],
            "interval": self.interval,
            "adjust": self._adjustments(),
            "skip": self.skip_layer,
            "still_above": float(sigmas[self.zero_steps]) if self.zero_steps else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """What differs from plain guidance, as JSON has it; `from_dict` reads it."""
        described = fields.plain(self)
        return {name: described[name] for name in fields.changed(self)}

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> "Guidance":
        """Read what `to_dict` wrote, also through JSON.

        Raises:
            SettingsError: names or values that `to_dict` does not write.
        """
        try:
            return cls(**described)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"saved guidance is damaged: {error}") from error

    def _adjustments(self) -> "tuple[Adjust, ...]":
        import flow

        adjustments: list[Adjust] = []
        if self.rescale:
            adjustments.append(flow.rescale(self.rescale))
        if self.threshold is not None:
            adjustments.append(flow.threshold(*self.threshold))
        return tuple(adjustments)


PLAIN = Guidance()
"""At all noise levels, and nothing besides."""


@dataclass(frozen=True)
class GuidanceKind(Kind):
    """A `Guidance`, or its fields."""

    argument: ClassVar[Mapping[str, Any]] = {"of": Guidance}

    def check(self, name: str, value: Any) -> Guidance:
        """See `Kind`."""
        if isinstance(value, Guidance):
            return value
        if not isinstance(value, Mapping):
            raise SettingsError(f"{name} must be a Guidance, got {value!r}")
        return Guidance.from_dict(value)

    def plain(self, value: Guidance) -> dict[str, Any]:
        """See `Kind`."""
        return value.to_dict()
