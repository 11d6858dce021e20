"""The ControlNets of a picture, in a form that can be written into it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import SettingsError
from .kinds import NONE, Kind, Number
from .shown import Pictures, nth

ControlKind = Literal["raw", "canny", "depth", "blur"]
CONTROL_KINDS: Mapping[str, str] = {
    "raw": "it is the control picture: edges white on black, a depth map, ... as the file expects it",
    "canny": "edges are drawn from it, by Canny's method (OpenCV, thresholds 100 and 200)",
    "depth": "the same as raw, and refused by a file that reads something else than depth",
    "blur": "it is blurred: a Gaussian of 51 pixels, deviation 8",
}
"""What is made of the picture that is given to a ControlNet."""


@dataclass(frozen=True)
class Control:
    """One ControlNet: its weights, the picture that it reads, and how strongly and when it acts.

        pipe.generate("a house", control=sd35.Control("canny.safetensors", "edges.png", scale=0.8))

    Attributes:
        source: a file, a folder or owner/name on the Hub; "outline", which ships for the embedded model; or a
            module, as `weights.load_controlnet` gives it.
        image: the picture in any form, one for all images or a list of one for each.
        kind: what is made of the picture; `CONTROL_KINDS` tells them.
        scale: strength; 1 is full.
        start: it acts from this part of the steps that are run,
        end: to this part.
        mask: for ControlNets that are made for inpainting: white is redrawn.
        digest: a hash of the weights; found when they are read.
    """

    source: Any
    image: Any
    kind: ControlKind = "raw"
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mask: Any = None
    digest: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ControlKind):
            raise SettingsError(f"control kind must be {', '.join(get_args(ControlKind))}, got {self.kind!r}")
        Number().check("control scale", self.scale)
        for name in ("start", "end"):
            Number(0, 1).check(f"control {name}", getattr(self, name))
        if not self.start < self.end:
            raise SettingsError(
                f"control start must be below control end, got {self.start:g} and {self.end:g}"
            )
        if self.scale == 0:
            raise SettingsError("a ControlNet at scale 0 has no effect: leave it out")

    @classmethod
    def of(cls, given: Any) -> "Control":
        """One of a Control, of (source, image), or of its fields.

        Raises:
            SettingsError: it is none of these.
        """
        if isinstance(given, cls):
            return given
        try:
            if isinstance(given, Mapping):
                return cls(**given)
            if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2:
                return cls(*given)
        except TypeError as error:
            raise SettingsError(f"this is no Control: {error}") from error
        raise SettingsError(
            "a ControlNet is given as sd35.Control(source, image), or as a pair of both, got "
            f"{type(given).__name__}"
        )

    def kept(self, steps: int) -> frozenset[int]:
        """The steps, of so many that are run, in which it acts: i / n ≥ start and (i + 1) / n ≤ end.

        As in diffusers. A short schedule may leave none.
        """
        return frozenset(
            i for i in range(steps) if not (i / steps < self.start or (i + 1) / steps > self.end)
        )

    @property
    def recorded(self) -> "Control":
        """With nothing but what can be written down."""
        source = _place_of(self.source) if isinstance(self.source, str | Path) else ""
        mask = None if self.mask is None else Pictures().check("the mask of a control", self.mask)
        image = Pictures().check("the picture of a control", self.image)
        return replace(self, source=source, image=image, mask=mask)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the flow that it makes: hashes where they are known, and no paths."""
        pictures = {
            name: None if shown is None else [one.identity for one in shown]
            for name, shown in {"image": self.image, "mask": self.mask}.items()
        }
        return {**asdict(self), **pictures, "source": self.digest or self.source}

    def nth(self, index: int) -> "Control":
        """That of image `index` alone."""
        mask = None if self.mask is None else nth(self.mask, index)
        return replace(self, image=nth(self.image, index), mask=mask)

    def __str__(self) -> str:
        return f"{self.source or 'a ControlNet that was given in memory'} at scale {self.scale:g}"


def _place_of(source: str | Path) -> str:
    """A ControlNet by a name that is good in every folder: an absolute path for what is on this machine."""
    from weights.source import EMBEDDED  # when a picture is drawn: torch takes seconds

    path = Path(source).expanduser()
    return str(path.absolute()) if source not in EMBEDDED and path.exists() else str(source)


@dataclass(frozen=True)
class Controls(Kind):
    """Any number of ControlNets."""

    def check(self, name: str, value: Any) -> tuple[Control, ...]:
        """See `Kind`."""
        return tuple(one.recorded for one in controls_of(value))

    def plain(self, value: tuple[Control, ...]) -> list[dict[str, Any]]:
        """See `Kind`."""
        return [asdict(one) for one in value]


def controls_of(value: Any) -> tuple[Control, ...]:
    """ControlNets in any form that a user has them: one, or several.

    Raises:
        SettingsError: it is none.
    """
    if value is None or value == NONE:
        return ()
    if isinstance(value, Control | Mapping):
        return (Control.of(value),)
    is_pair = isinstance(value, tuple) and len(value) == 2 and not isinstance(value[1], Control | Mapping)
    if is_pair and not (isinstance(value[0], Sequence) and not isinstance(value[0], str)):
        return (Control.of(value),)
    if not isinstance(value, tuple | list):
        raise SettingsError(f"control must be a Control or several, got {type(value).__name__}")
    return tuple(Control.of(one) for one in value)
