"""Devices and dtypes by the names that users write."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

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


@cache
def fast_dtype() -> torch.dtype:
    """bfloat16 where this CPU multiplies it in two thirds of float32's time or less, else float32.

    Measured once in a process, in some milliseconds: the best of three products of 384 x 384 matrices.
    Processors with AMX or avx512_bf16 have instructions for it; others convert, and are slower.
    """
    seconds = {dtype: min(_product(dtype) for _ in range(4)) for dtype in (torch.float32, torch.bfloat16)}
    return torch.bfloat16 if seconds[torch.bfloat16] <= 2 / 3 * seconds[torch.float32] else torch.float32


def _product(dtype: torch.dtype) -> float:
    """Seconds of a matrix product."""
    a = torch.ones(384, 384, dtype=dtype)
    begin = time.perf_counter()
    torch.mm(a, a)
    return time.perf_counter() - begin


@contextmanager
def full_float32() -> Iterator[None]:
    """Within the block, float32 convolutions are computed in float32 on NVIDIA's cards too.

    torch rounds what enters them to TF32, of 11 bits, unless told not to. The flag is what it was afterwards.
    """
    conv = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]  (not in its hints)
    before = conv.fp32_precision
    if before == "tf32":
        conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        if before == "tf32":
            conv.fp32_precision = before


def check_compiler(device: torch.device) -> None:
    """See that what `torch.compile` needs is there, before anything is loaded.

    Raises:
        SettingsError: there is no C++ compiler for a CPU, or no Triton for a GPU.
    """
    if device.type == "cpu" and not any(
        shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")
    ):
        raise SettingsError(
            "compile needs a C++ compiler, and none is here: install g++ or clang++, or set CXX; or leave "
            "compile out"
        )
    if device.type == "cuda" and find_spec("triton") is None:
        raise SettingsError("compile needs triton, which is not installed here: pip install triton")


def check_graphs(device: torch.device) -> None:
    """See that a device has CUDA graphs, before anything is loaded.

    Raises:
        SettingsError: it has none.
    """
    if device.type != "cuda":
        raise SettingsError(f"CUDA graphs are for CUDA devices, and this is {device.type}: leave them out")
