"""Stable Diffusion 3.5 as a whole: the pipeline, the command line, the training of the embedded model.

    import sd35

    pipe = sd35.load("tiny")
    result = pipe.generate("a red circle on a white background", seed=0)
    result.images[0].show()

The parts are packages of their own and are joined here alone: `mmdit`, `vae`, `textenc`, `flow`, `weights`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .editing import Control, Edited
    from .errors import NonFiniteError, SettingsError
    from .generation import Generation
    from .guided import GuidedVelocity
    from .invert import Inverted
    from .loading import load
    from .metadata import read_settings
    from .noise import draw_noise
    from .pipeline import Pipeline
    from .result import Result
    from .settings import Settings
    from .state import State
    from .taps import capture, edit

__all__ = [
    "Control",
    "Edited",
    "Generation",
    "GuidedVelocity",
    "Inverted",
    "NonFiniteError",
    "Pipeline",
    "Result",
    "Settings",
    "SettingsError",
    "State",
    "capture",
    "draw_noise",
    "edit",
    "load",
    "read_settings",
]

_HOMES = {
    "Control": ".editing",
    "Edited": ".editing",
    "Generation": ".generation",
    "GuidedVelocity": ".guided",
    "Inverted": ".invert",
    "NonFiniteError": ".errors",
    "Pipeline": ".pipeline",
    "Result": ".result",
    "Settings": ".settings",
    "SettingsError": ".errors",
    "State": ".state",
    "capture": ".taps",
    "draw_noise": ".noise",
    "edit": ".taps",
    "load": ".loading",
    "read_settings": ".metadata",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch takes seconds, and `sd35 --help` needs none."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
