"""Files, key names and the network: from a source's name to modules that hold its weights."""

from .adapters import Adapter, AdapterReport, inspect_adapter, is_adapter, read_adapter
from .build import build_clip, build_controlnet, build_mmdit, build_t5, build_vae
from .errors import (
    AdapterError,
    CheckpointError,
    FileFormatError,
    FitError,
    GatedError,
    HubError,
    LicenceError,
    MissingComponent,
    OfflineError,
    SourceError,
    UnknownRepoError,
    UnknownRevisionError,
    ValuesError,
)
from .load import load_clip, load_controlnet, load_mmdit, load_t5, load_textenc, load_vae
from .report import ComponentReport, Report, inspect
from .source import Source, resolve
from .values import nonfinite

__all__ = [
    "Adapter",
    "AdapterError",
    "AdapterReport",
    "CheckpointError",
    "ComponentReport",
    "FileFormatError",
    "FitError",
    "GatedError",
    "HubError",
    "LicenceError",
    "MissingComponent",
    "OfflineError",
    "Report",
    "Source",
    "SourceError",
    "UnknownRepoError",
    "UnknownRevisionError",
    "ValuesError",
    "build_clip",
    "build_controlnet",
    "build_mmdit",
    "build_t5",
    "build_vae",
    "inspect",
    "inspect_adapter",
    "is_adapter",
    "load_clip",
    "load_controlnet",
    "load_mmdit",
    "load_t5",
    "load_textenc",
    "load_vae",
    "nonfinite",
    "read_adapter",
    "resolve",
]
