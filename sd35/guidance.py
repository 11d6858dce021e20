"""The variants of guidance in `flow`, chosen by values that can be written into a picture."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, Literal, get_args

from torch import Tensor

import flow
from flow import SkipLayer
from flow.guidance import Adjust, Combine, apg, cfg_zero, plain, rescale, threshold

from .errors import SettingsError

Rule = Literal["plain", "cfg_zero", "apg"]


def _are_numbers(values: object, count: int) -> bool:
    return (
        isinstance(values, tuple | list)
        and len(values) == count
        and all(isinstance(v, int | float) and not isinstance(v, bool) and isfinite(v) for v in values)
    )


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """What is made of the velocities with and without the prompt. The defaults are plain guidance.

    At a guidance scale of 1 only `zero_steps` has an effect. The parts compose, in the order of the fields.

    Raises:
        SettingsError: a value out of range.
    """

    rule: Rule = "plain"
    """How two velocities become one: `flow.guide`, CFG-Zero* (`flow.cfg_zero`) or adaptive projected guidance
    (`flow.apg` without a limit on the norm)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels that are guided, both ends included; elsewhere a step costs half (arXiv:2404.07724)."""
    zero_steps: int = 0
    """First steps in which the state stands still: the other half of CFG-Zero* (arXiv:2503.18886)."""
    skip_layer: SkipLayer | None = None
    """Skip-layer guidance, one evaluation more in a window of steps; `flow.SKIP_LAYER` has SD3.5-medium's."""
    rescale: float = 0.0
    """φ of `flow.rescale`, in [0, 1]: how far the spread is brought back to that of the prompt alone."""
    threshold: tuple[float, float] | None = None
    """Percentile and bound of `flow.threshold`."""

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise SettingsError(f"rule must be one of {', '.join(get_args(Rule))}; got {self.rule!r}")
        for name, count in (("interval", 2), ("threshold", 2)):
            value = getattr(self, name)
            if value is not None and not _are_numbers(value, count):
                raise SettingsError(f"{name} must be {count} numbers, got {value!r}")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise SettingsError(f"interval must be two rising noise levels in [0, 1], got {self.interval}")
        if type(self.zero_steps) is not int or self.zero_steps < 0:
            raise SettingsError(f"zero_steps must be a whole number from 0 on, got {self.zero_steps!r}")
        if not _are_numbers([self.rescale], 1) or not 0 <= self.rescale <= 1:
            raise SettingsError(f"rescale must be in [0, 1], got {self.rescale!r}")
        self._adjustments()  # refuses a threshold out of range

    def options(self, sigmas: Tensor) -> dict[str, Any]:
        """Keyword arguments of `GuidedVelocity`.

        Args:
            sigmas: the noise levels of the whole generation, (steps + 1,).

        Raises:
            SettingsError: more steps stand still than there are.
        """
        if self.zero_steps >= len(sigmas) - 1:
            raise SettingsError(
                f"zero_steps must be fewer than the {len(sigmas) - 1} steps, got {self.zero_steps}"
            )
        rules: dict[str, Combine] = {"plain": plain, "cfg_zero": cfg_zero, "apg": apg()}
        return {
            "combine": rules[self.rule],
            "interval": self.interval,
            "adjust": self._adjustments(),
            "skip": None if self.skip_layer is None else (self.skip_layer, sigmas),
            "still_above": float(sigmas[self.zero_steps]) if self.zero_steps else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """What differs from plain guidance, as JSON has it; `from_dict` reads it."""
        changed = [name for name in asdict(self) if getattr(self, name) != getattr(PLAIN, name)]
        return {name: value for name, value in asdict(self).items() if name in changed}

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> "Guidance":
        """Read what `to_dict` wrote, also through JSON.

        Raises:
            SettingsError: names or values that `to_dict` does not write.
        """
        try:
            given = dict(described)
            if given.get("skip_layer") is not None:
                given["skip_layer"] = _skip_layer(**given["skip_layer"])
            for name in ("interval", "threshold"):
                if isinstance(given.get(name), list):
                    given[name] = tuple(given[name])
            return cls(**given)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"saved guidance is damaged: {error}") from error

    def _adjustments(self) -> tuple[Adjust, ...]:
        adjustments: list[Adjust] = []
        if self.rescale:
            adjustments.append(rescale(self.rescale))
        if self.threshold is not None:
            adjustments.append(threshold(*self.threshold))
        return tuple(adjustments)


PLAIN = Guidance()
"""At all noise levels, and nothing besides."""


def named_skip_layer(name: str, layers: tuple[int, ...] | None = None) -> SkipLayer:
    """Skip-layer guidance by the name of whose numbers it has, for these layers in place of SD3.5-medium's.

    Raises:
        SettingsError: there are no numbers of that name.
    """
    if name not in flow.SKIP_LAYER:
        raise SettingsError(f"skip_layer must be one of {', '.join(flow.SKIP_LAYER)}; got {name!r}")
    found = flow.SKIP_LAYER[name]
    return found if layers is None else replace(found, layers=layers)


def _skip_layer(*, layers: list[int], **numbers: float) -> SkipLayer:
    return SkipLayer(layers=tuple(layers), **numbers)
