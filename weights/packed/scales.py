"""Scales beside weights in 8 bits, in every spelling that files have them in.

    scaled_fp8                a marker; with it <layer>.scale_weight and .scale_input    ComfyUI until 2025
    <layer>.comfy_quant       JSON as bytes; with it <layer>.weight_scale, .input_scale  ComfyUI since
    _quantization_metadata    the same JSON for all layers, in the header                the same, and ours

A weight is its stored number times its scale: one for all, or one for each row. The scale of the input is
for products in fp8 alone and is not used here. A weight stored under an integer's dtype is read as its format
says.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import FileFormatError
from ..file import TensorInfo
from .value import Packed

MARKER = "scaled_fp8"
METADATA = "_quantization_metadata"
FORMATS: Mapping[str, str] = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8_rowwise": "I8"}
"""Format to how its numbers are stored. `int8_rowwise` is our own: int8 times a scale for each row."""
_SCALES, _INPUTS, _FORMAT = (
    (".scale_weight", ".weight_scale"),
    (".scale_input", ".input_scale"),
    ".comfy_quant",
)


@dataclass(frozen=True)
class Coded:
    """How one weight in 8 bits is to be read."""

    scale: str | None  # key of its scale
    format: str | None  # as the header says
    format_key: str | None  # key of the tensor that says so


def take_scales(
    names: list[str], infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], *, prefix: str, where: str
) -> tuple[list[str], dict[str, Coded]]:
    """Set the keys of scales apart from those of weights.

    Args:
        names: the keys of a part, prefix included.
        infos: of all keys.
        metadata: of the file's header.
        prefix: the part's, which the layers in the header may lack.
        where: the file, for messages.

    Returns:
        The other keys, and weight to how it is read.

    Raises:
        FileFormatError: a scale whose weight is not there, that no format has, or that is there twice.
    """
    formats = _formats(metadata, where)
    rest, found = [], dict[str, dict[str, str]]()
    for name in names:
        role = next((end for end in (*_SCALES, *_INPUTS, _FORMAT) if name.endswith(end)), None)
        if role is not None:
            found.setdefault(name.removesuffix(role), {})[role] = name
        elif name.removeprefix(prefix) == MARKER:
            if infos[name].dtype not in ("F8_E4M3", "F8_E5M2", "F32"):
                raise FileFormatError(
                    f"{where}: {name} is of {infos[name].dtype}, where fp8 or F32 marks the file"
                )
        else:
            rest.append(name)
    layers = {
        prefix + layer: stated for layer, stated in formats.items() if prefix + layer + ".weight" in infos
    }
    layers |= {layer: stated for layer, stated in formats.items() if f"{layer}.weight" in infos}
    coded = {}
    for layer in found.keys() | layers.keys():
        keys, weight = found.get(layer, {}), f"{layer}.weight"
        if weight not in infos:
            raise FileFormatError(f"{where}: {next(iter(keys.values()))} is there and {weight} is not")
        scales = [keys[end] for end in _SCALES if end in keys]
        if len(scales) > 1:
            raise FileFormatError(
                f"{where}: {' and '.join(scales)} are both there: which is meant cannot be known"
            )
        one = Coded(scales[0] if scales else None, layers.get(layer), keys.get(_FORMAT))
        _check(weight, one, infos, where)
        coded[weight] = one
    return rest, coded


def _formats(metadata: Mapping[str, str], where: str) -> dict[str, str]:
    """Layer to format, as the header says."""
    if METADATA not in metadata:
        return {}
    try:
        return {
            str(layer): str(stated["format"])
            for layer, stated in json.loads(metadata[METADATA])["layers"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FileFormatError(
            f"{where}: its header's {METADATA} cannot be read ({error!r}): fetch it again"
        ) from None


def _check(weight: str, coded: Coded, infos: Mapping[str, TensorInfo], where: str) -> None:
    """See that a weight, its scale and its format can belong together, by what the header tells."""
    info = infos[weight]
    states_format = coded.format is not None or coded.format_key is not None
    if coded.format is not None:
        _kind(coded.format, info.dtype, f"{where}: {weight}")
    if info.dtype not in ("F8_E4M3", "F8_E5M2") and not (states_format and info.dtype in ("U8", "I8")):
        raise FileFormatError(
            f"{where}: {coded.scale or weight} is the scale of a weight in 8 bits, and {weight} is "
            f"{info.dtype}: whether it is multiplied already cannot be known. Fetch another version of the "
            "file"
        )
    if coded.scale is None:
        if states_format:
            raise FileFormatError(
                f"{where}: {weight} is scaled and its scale is not there: fetch the file again"
            )
        return
    scale, rows = infos[coded.scale], info.shape[0] if info.shape else 0
    if not scale.dtype.startswith(("F", "B")) or scale.shape not in ((), (1,), (rows,), (rows, 1), (1, 1)):
        raise FileFormatError(
            f"{where}: {coded.scale} is {scale.dtype} {list(scale.shape)}, where one number or one for "
            f"each of {rows} rows belongs"
        )


def _kind(stated: str, dtype: str, where: str) -> str:
    """How numbers of a format are stored, where it is supported and is what is there."""
    if stated not in FORMATS:
        raise FileFormatError(
            f"{where} is in the format {stated}, which is not supported: {', '.join(FORMATS)} are"
        )
    if dtype not in (FORMATS[stated], "U8"):
        raise FileFormatError(
            f"{where} is said to be {stated} and is stored as {dtype}: fetch the file again"
        )
    return FORMATS[stated]


def read_coded(weight: str, coded: Coded, read: Callable[[str], Tensor], dtype: str, *, where: str) -> Packed:
    """One weight as it is stored, with its scale.

    Args:
        weight: its key.
        coded: how it is read.
        read: key to tensor.
        dtype: of the weight, in the file's spelling.
        where: the file, for messages.

    Raises:
        FileFormatError: its format is not supported, or its scale is no positive number.
    """
    stated = coded.format
    if coded.format_key is not None:
        try:
            stated = str(json.loads(bytes(read(coded.format_key).tolist()))["format"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise FileFormatError(
                f"{where}: {coded.format_key} holds no format ({error!r}): fetch it again"
            ) from None
    kind = dtype if stated is None else _kind(stated, dtype, f"{where}: {weight}")
    tensor = read(weight)
    scale = None
    if coded.scale is not None:
        scale = read(coded.scale).float()
        if not (scale.isfinite().all() and (scale > 0).all()):
            raise FileFormatError(
                f"{where}: {coded.scale} holds a number that is not positive: fetch the file again"
            )
        scale = scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1)
    return stored_as(kind, tensor, scale)


def stored_as(kind: str, tensor: Tensor, scale: Tensor | None = None) -> Packed:
    """A tensor of 8-bit numbers as a packed weight."""
    import torch

    rows = tensor.view(torch.uint8).reshape(tensor.shape[0], -1)
    return Packed(kind, rows, tuple(tensor.shape), scale)
