"""Stable Diffusion 3.5 as a whole: the pipeline, the command line, the training of the embedded model.

    import sd35

    pipe = sd35.load("tiny")
    result = pipe.generate("a red circle on a white background", seed=0)
    result.images[0].show()

The parts are packages of their own and are joined here alone: `mmdit`, `vae`, `textenc`, `flow`, `weights`.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .siblings import check_siblings

if TYPE_CHECKING:
    from .adapters.control import control_image as control_image
    from .adapters.lora import add_lora as add_lora
    from .adapters.lora import lora_parameters as lora_parameters
    from .adapters.lora import loras_on as loras_on
    from .adapters.lora import remove_lora as remove_lora
    from .adapters.lora import set_lora as set_lora
    from .adapters.report import LoraReport as LoraReport
    from .attention import AttentionMaps as AttentionMaps
    from .attention import WordError as WordError
    from .attention import attention_maps as attention_maps
    from .attention import attention_sheet as attention_sheet
    from .attention import heat_picture as heat_picture
    from .attention import heat_share as heat_share
    from .attention import overlay as overlay
    from .controls import Control as Control
    from .errors import NonFiniteError as NonFiniteError
    from .errors import SettingsError as SettingsError
    from .guidance import Guidance as Guidance
    from .loading import load as load
    from .loras import Lora as Lora
    from .noise import draw_noise as draw_noise
    from .pipeline import Pipeline as Pipeline
    from .report import Recording as Recording
    from .saved.png import read_settings as read_settings
    from .saved.result import Result as Result
    from .saved.state import State as State
    from .settings import Settings as Settings
    from .taps import BudgetError as BudgetError
    from .taps import Captures as Captures
    from .taps import TapError as TapError
    from .taps import capture as capture
    from .taps import list_taps as list_taps
    from .taps import patch as patch
    from .tasks.edit import Edited as Edited
    from .tasks.generate import Generation as Generation
    from .tasks.invert import Inverted as Inverted
    from .tasks.watermark import Sought as Sought
    from .train.controlnet import train_controlnet as train_controlnet
    from .train.dreambooth import train_dreambooth as train_dreambooth
    from .train.full import train_full as train_full
    from .train.lora import train_lora as train_lora
    from .train.reflow import train_reflow as train_reflow
    from .train.vae import train_vae as train_vae
    from .velocity import GuidedVelocity as GuidedVelocity

HOMES = {
    ".adapters.control": ("control_image",),
    ".controls": ("Control",),
    ".adapters.lora": ("add_lora", "lora_parameters", "loras_on", "remove_lora", "set_lora"),
    ".adapters.report": ("LoraReport",),
    ".attention": (
        "AttentionMaps",
        "WordError",
        "attention_maps",
        "attention_sheet",
        "heat_picture",
        "heat_share",
        "overlay",
    ),
    ".errors": ("NonFiniteError", "SettingsError"),
    ".guidance": ("Guidance",),
    ".loras": ("Lora",),
    ".loading": ("load",),
    ".noise": ("draw_noise",),
    ".pipeline": ("Pipeline",),
    ".report": ("Recording",),
    ".saved.png": ("read_settings",),
    ".saved.result": ("Result",),
    ".saved.state": ("State",),
    ".settings": ("Settings",),
    ".taps": ("BudgetError", "Captures", "TapError", "capture", "list_taps", "patch"),
    ".tasks.edit": ("Edited",),
    ".tasks.generate": ("Generation",),
    ".tasks.invert": ("Inverted",),
    ".tasks.watermark": ("Sought",),
    ".train.controlnet": ("train_controlnet",),
    ".train.dreambooth": ("train_dreambooth",),
    ".train.full": ("train_full",),
    ".train.lora": ("train_lora",),
    ".train.reflow": ("train_reflow",),
    ".train.vae": ("train_vae",),
    ".velocity": ("GuidedVelocity",),
}
"""The public names by the module that each is imported from when it is first asked for: torch takes seconds,
and `sd35 --help` needs none of it."""

check_siblings(Path(__file__).resolve().parents[1])


def __getattr__(name: str) -> Any:
    for home, names in HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(home, __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for names in HOMES.values() for name in names)})
