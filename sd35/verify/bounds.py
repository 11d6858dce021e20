"""How far a computation may lie from the reference's float64.

Errors are relative to the largest magnitude of the expected tensor. A bound in low precision is a multiple of
u, the largest relative error of one rounding; in float32 and float64 it is a multiple of what the order of
sums alone makes of correct implementations, and that of the text encoders in float32 is derived from the
lengths of their sums (`rounding.py`). The largest errors measured on a CPU, of all stages of a family:

    family        float64   bound    float32   bound    bfloat16   float16   bound
    text          3.6e-16   1e-12    5.0e-7    derived  1.6 u      1.4 u     3 u
    mmdit         5.4e-16   1e-12    2.8e-7    2e-6     2.5 u      4.3 u     6 u
    vae           3.1e-15   1e-12    1.3e-6    4e-6     4.9 u      4.5 u     8 u
    generation    2.0e-6    5e-6     2.1e-6    5e-6     10.2 u     10.2 u    16 u
"""

from dataclasses import dataclass
from typing import Literal

import torch

from ..errors import SettingsError

Family = Literal["text", "mmdit", "vae", "generation"]

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

EXACT: dict[torch.dtype, dict[Family, float]] = {
    # The trajectory's reference was computed from encodings in float32, which bounds it in float64 too.
    torch.float64: {"text": 1e-12, "mmdit": 1e-12, "vae": 1e-12, "generation": 5e-6},
    torch.float32: {"mmdit": 2e-6, "vae": 4e-6, "generation": 5e-6},
}
UNITS: dict[Family, float] = {"text": 3, "mmdit": 6, "vae": 8, "generation": 16}
"""Bounds in low precision, in u."""

ROUNDOFF = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
TF32 = 2**-11
"""The roundoff of NVIDIA's 19-bit floats, in which torch computes float32 convolutions unless told not to."""


@dataclass(frozen=True)
class Precision:
    """What is computed in, and the bounds that follow."""

    dtype: torch.dtype
    tf32: bool  # whether float32 convolutions are rounded to TF32

    @property
    def name(self) -> str:
        """For people: "float32", "float32 with convolutions in TF32"."""
        return str(self.dtype).removeprefix("torch.") + (" with convolutions in TF32" if self.tf32 else "")

    def bound(self, family: Family) -> float:
        """The largest relative error that passes."""
        if self.dtype in ROUNDOFF:
            return UNITS[family] * ROUNDOFF[self.dtype]
        if self.tf32:
            return UNITS[family] * TF32
        return EXACT[self.dtype][family]


def precision_of(name: str, device: torch.device) -> Precision:
    """The precision that a dtype means on a device, with the flags of torch as they are.

    Raises:
        SettingsError: the name is unknown, or the device cannot compute in it.
    """
    if name not in DTYPES:
        raise SettingsError(f"dtype must be one of {', '.join(DTYPES)}; got {name!r}")
    if name == "float64" and device.type == "mps":
        raise SettingsError("an mps device computes nothing in float64: use float32, or --device cpu")
    allowed = bool(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    return Precision(DTYPES[name], tf32=allowed and device.type == "cuda" and name == "float32")
