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
    from .attention import (
        AttentionMaps,
        WordError,
        attention_maps,
        attention_sheet,
        heat_picture,
        heat_share,
        overlay,
    )
    from .control import control_image
    from .editing import Control, Edited
    from .errors import NonFiniteError, SettingsError
    from .generation import Generation
    from .guidance import Guidance
    from .guided import GuidedVelocity
    from .invert import Inverted
    from .loading import load
    from .metadata import read_settings
    from .noise import draw_noise
    from .pipeline import Pipeline
    from .result import Result
    from .settings import Settings
    from .state import State
    from .taps import BudgetError, Captures, TapError, capture, list_taps, patch

__all__ = [
    "AttentionMaps",
    "BudgetError",
    "Captures",
    "Control",
    "Edited",
    "Generation",
    "Guidance",
    "GuidedVelocity",
    "Inverted",
    "NonFiniteError",
    "Pipeline",
    "Result",
    "Settings",
    "SettingsError",
    "State",
    "TapError",
    "WordError",
    "attention_maps",
    "attention_sheet",
    "capture",
    "control_image",
    "draw_noise",
    "heat_picture",
    "heat_share",
    "list_taps",
    "load",
    "overlay",
    "patch",
    "read_settings",
]

_HOMES = {
    "AttentionMaps": ".attention",
    "BudgetError": ".taps",
    "Captures": ".taps",
    "Control": ".editing",
    "Edited": ".editing",
    "Generation": ".generation",
    "Guidance": ".guidance",
    "GuidedVelocity": ".guided",
    "Inverted": ".invert",
    "NonFiniteError": ".errors",
    "Pipeline": ".pipeline",
    "Result": ".result",
    "Settings": ".settings",
    "SettingsError": ".errors",
    "State": ".state",
    "TapError": ".taps",
    "WordError": ".attention",
    "attention_maps": ".attention",
    "attention_sheet": ".attention",
    "capture": ".taps",
    "control_image": ".control",
    "draw_noise": ".noise",
    "heat_picture": ".attention",
    "heat_share": ".attention",
    "list_taps": ".taps",
    "load": ".loading",
    "overlay": ".attention",
    "patch": ".taps",
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
