"""Weights rounded to 8 bits with a scale for each row, and the file that holds them."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .scales import FORMATS, METADATA, stored_as
from .value import STORED, Packed

TARGETS: Mapping[str, str] = {"int8": "int8_rowwise", "fp8": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
"""What weights can be rounded to, and the format that a file states."""

_LARGEST = {"I8": 127.0, "F8_E4M3": 448.0, "F8_E5M2": 57344.0}
"""The largest number of each kind."""


def rounded(weight: Tensor, to: str) -> Packed:
    """A weight in 8 bits: each row is divided by its scale, which makes its largest number the format's.

    Args:
        weight: (rows, columns), of any float dtype.
        to: a key of TARGETS.
    """
    kind = FORMATS[TARGETS[to]]
    numbers = weight.float()
    scale = numbers.abs().amax(dim=1, keepdim=True) / _LARGEST[kind]
    scale = torch.where(scale == 0, 1.0, scale)  # a row of zeros
    numbers = (numbers / scale).clamp(-_LARGEST[kind], _LARGEST[kind])
    stored = (numbers.round() if kind == "I8" else numbers).to(STORED[kind])
    return stored_as(kind, stored, scale)


def write_packed(
    path: Path,
    tensors: Mapping[str, Tensor],
    packed: Mapping[str, Packed],
    to: str,
    *,
    prefix: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a part with some of its weights in 8 bits, as `take_scales` reads them.

    Args:
        path: the file; what is there is replaced.
        tensors: the other tensors, by our key.
        packed: the weights, by our key.
        to: the target that they were rounded to.
        prefix: what to put before every key.
        metadata: more for the header, as "modelspec.resolution".
    """
    stored = {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}
    layers = {}
    for name, weight in packed.items():
        layer = prefix + name.removesuffix(".weight")
        stored[f"{layer}.weight"] = weight.rows.view(STORED[weight.kind]).view(weight.shape).contiguous()
        assert weight.scale is not None
        stored[f"{layer}.weight_scale"] = weight.scale.contiguous()
        layers[layer] = {"format": TARGETS[to]}
    stated = json.dumps({"format_version": "1.0", "layers": layers})
    save_file(stored, path, metadata={**(metadata or {}), "format": "pt", METADATA: stated})
