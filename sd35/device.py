"""Devices and dtypes by the names that users write."""

import torch

from .errors import SettingsError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def as_device(name: str | torch.device) -> torch.device:
    """The device of a name, if it is there; "auto" is the fastest there is.

    Raises:
        SettingsError: no such kind of device, or none on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if _has("cuda") else "mps" if _has("mps") else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(
            f"there is no kind of device {name!r}: use cpu, cuda, cuda:1, mps or auto"
        ) from error
    if not _has(device.type):
        raise SettingsError(
            f"this machine, or this build of torch, has no {device.type} device: use cpu or auto"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"there is no {device}: this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return device


def as_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of a name; None stays None.

    Raises:
        SettingsError: it is none that models run in.
    """
    if name is not None and name not in DTYPES:
        raise SettingsError(f"dtype must be one of {', '.join(DTYPES)}; got {name!r}")
    return None if name is None else DTYPES[name]


def _has(kind: str) -> bool:
    """Whether a kind of device is usable here; other kinds than these two are the caller's responsibility."""
    if kind == "cuda":
        return torch.cuda.is_available()
    return torch.backends.mps.is_available() if kind == "mps" else True
