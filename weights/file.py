"""One safetensors file: checked as a whole before it is trusted, then read by mapping it into memory.

The format (github.com/huggingface/safetensors, README "Format"): an unsigned 64-bit little-endian length n,
n bytes of JSON that name every tensor with its dtype, shape and byte range, then the bytes themselves.
The header alone answers what a file holds, so nothing here reads weights before they are wanted.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import FileFormatError, SourceError
from .packed.blocks import BLOCKS

MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library sets; real headers have 20 to 200 kB."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "C64": torch.complex64,
    "BOOL": torch.bool,
}
"""The dtypes of the format that torch knows, in the format's spelling."""

_SIGNATURES: tuple[tuple[tuple[bytes, ...], str], ...] = (
    (
        (b"\x89png", b"\xff\xd8\xff", b"gif8", b"riff"),
        "is a picture, a film or a sound, and no model: weights are .safetensors or .gguf files",
    ),
    (
        (b"version https://git-lfs",),
        "is a Git LFS pointer, not the weights themselves: run `git lfs pull` in its repository, "
        "or download the file again",
    ),
    (
        (b"pk\x03\x04",),
        "is a zip archive, as torch.save writes: it holds pickled objects, which can run code and are never "
        "opened here. Fetch the .safetensors version of this checkpoint",
    ),
    (
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "is a Python pickle: it can run code and is never opened here. "
        "Fetch the .safetensors version of this checkpoint",
    ),
    (
        (b"\x00\x05\x16\x07",),
        "holds what macOS keeps beside a file of this name without the `._`: it is not the weights, and may "
        "be deleted",
    ),
    (
        (b"gguf",),
        "is a GGUF file under another name: rename it to end in .gguf",
    ),
    (
        (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"),
        "is a web page (HTML), most likely a login or an error page saved in place of the download: "
        "download it again, with an access token where the repository is gated",
    ),
    (
        (b'{"',),
        "is JSON text, most likely an error message saved in place of the download: download it again",
    ),
)
"""What else is found under the name .safetensors, by its first bytes, in lower case."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as a header describes it."""

    shape: tuple[int, ...]
    dtype: str  # in the format's spelling: F32, BF16, F8_E4M3, ...

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        if self.dtype in BLOCKS:
            block = BLOCKS[self.dtype]
            return self.parameters // block.size * block.nbytes
        return self.parameters * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Header:
    """What a file says about itself: the tensors by name, in the file's order, and free metadata."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """Read and check a file's header, and check the file's length against it.

    Raises:
        SourceError: there is no file, or it may not be read.
        FileFormatError: the file is empty, truncated, or no safetensors file; the message says which,
            what it seems to be instead, and what to do.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(4096)
            length = int.from_bytes(start[:8], "little")
            _check_start(path, start, length, size)
            text = (start + file.read(length))[8 : 8 + length]
    except FileNotFoundError:
        raise SourceError(f"there is no file {path}") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_header(text, name=str(path), data_bytes=size - 8 - length)


def _check_start(path: Path, start: bytes, length: int, size: int) -> None:
    """Tell a safetensors file by its first bytes, or say what the file is instead."""
    if size == 0:
        raise FileFormatError(f"{path} is empty (0 bytes): the download did not happen. Fetch it again")
    is_plausible = start[8:9] == b"{" and length <= MAX_HEADER_BYTES
    if is_plausible and 8 + length <= size:
        return
    if is_plausible:
        raise FileFormatError(
            f"{path} is truncated inside its header: {8 + length:,} bytes are announced, {size:,} are there. "
            "The download was interrupted; fetch it again"
        )
    for signatures, what in _SIGNATURES:
        if start.lstrip().lower().startswith(signatures):
            raise FileFormatError(f"{path} {what}")
    if size >= 8 and length > MAX_HEADER_BYTES:
        raise FileFormatError(
            f"{path} announces a header of {length:,} bytes, where the format allows {MAX_HEADER_BYTES:,}: "
            f"it is damaged, made to do harm, or no safetensors file (it starts with {start[:8].hex(' ')}). "
            "Fetch it again from a source you trust"
        )
    raise FileFormatError(
        f"{path} is not a safetensors file: it starts with {start[:16].hex(' ')}, where a header length "
        "and '{' belong. It is damaged, or no file of weights at all"
    )


def parse_header(text: bytes, *, name: str, data_bytes: int) -> Header:
    """Turn header JSON into a `Header`, checking every entry and that the byte ranges tile the data.

    Args:
        text: the JSON.
        name: the file, for messages.
        data_bytes: how many bytes follow the header.

    Raises:
        FileFormatError: the JSON does not parse, an entry is malformed, or the data is too short or long.
    """
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its __metadata__ should hold texts by name")
        parsed = sorted((_entry(key, value) for key, value in entries.items()), key=lambda entry: entry[2])
    except _UnsupportedDtype as error:
        raise FileFormatError(f"{name}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{name} has a damaged header ({error}): fetch the file again") from None
    if not parsed:
        raise FileFormatError(f"{name} holds no tensors")
    end = 0
    for key, _, (begin, stop) in parsed:
        if begin != end:
            raise FileFormatError(f"{name} has a damaged header: {key} starts at byte {begin}, not {end}")
        end = stop
    if end > data_bytes:
        raise FileFormatError(
            f"{name} is truncated: its header announces {end:,} bytes of tensors, {data_bytes:,} are there. "
            "The download was interrupted; fetch it again"
        )
    if end < data_bytes:
        raise FileFormatError(
            f"{name} has {data_bytes - end:,} bytes after its last tensor: it is damaged, fetch it again"
        )
    return Header({key: info for key, info, _ in parsed}, metadata)


class _UnsupportedDtype(Exception):
    """A dtype that the format has, or may have one day, and torch has not: the file is not damaged."""


def unsupported_dtype(key: str, dtype: object) -> str:
    """Say that a tensor's dtype is not supported, and what to fetch."""
    return f"{key} has the dtype {dtype!r}, which is not supported: fetch F32, F16, BF16 or F8_E4M3"


def _entry(key: str, value: dict[str, Any]) -> tuple[str, TensorInfo, tuple[int, int]]:
    """Check one header entry: known dtype, sizes that are counts, a byte range of the right length."""
    dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    if dtype not in DTYPES:
        raise _UnsupportedDtype(unsupported_dtype(key, dtype))
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, begin, end)):
        raise ValueError(f"{key} has sizes that are no counts")
    info = TensorInfo(shape, dtype)
    if end - begin != info.nbytes:
        raise ValueError(
            f"{key} is {dtype} of shape {list(shape)}, {info.nbytes} bytes, and has {end - begin}"
        )
    return key, info, (begin, end)


class MappedFile:
    """The tensors of a file, mapped into memory: each is a view of the file until something changes it.

    The operating system reads a page when it is first touched and may drop it again, so opening
    costs nothing and there is no second copy. The mapping is private: writing to a tensor changes
    this process's memory, never the file. The file must not be overwritten in place meanwhile.
    """

    def __init__(self, path: Path) -> None:
        """Check the file and map it; raises as `read_header` does."""
        self.header = read_header(path)
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise FileFormatError(f"{path} cannot be mapped ({error}): fetch the file again") from error

    def __getitem__(self, name: str) -> Tensor:
        """The tensor `name`, on the CPU, in the file's dtype."""
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        """The names, in the file's order."""
        return iter(self.header.tensors)
