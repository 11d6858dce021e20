"""One GGUF file: checked as a whole before it is trusted, then read by mapping it into memory.

The format (github.com/ggml-org/ggml, docs/gguf.md): "GGUF", a version, the numbers of tensors and of keys,
the keys with typed values, then for each tensor its name, sizes (the fastest first, so the reverse of
torch's), type and offset, then, aligned, the bytes. It is read here by hand, since a damaged file gives a
wrong tensor in the gguf package as often as an error; the tests compare numbers with that package.
"""

import mmap
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileFormatError, SourceError
from ..file import Header, TensorInfo
from .blocks import BLOCKS
from .value import Packed

DENSE: Mapping[int, str] = {0: "F32", 1: "F16", 30: "BF16", 28: "F64"}
_QUANTISED: Mapping[int, str] = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS",
}  # fmt: skip
_UNSUPPORTED: Mapping[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
    40: "NVFP4",
}  # fmt: skip
ARCHITECTURES = ("sd3", "t5", "t5encoder", "")
"""What general.architecture may say; stable-diffusion.cpp says nothing."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_Value = str | int | float | bool | tuple[int | float | bool | str, ...]


class _Cursor:
    """Reads a file's head from front to back, and says where it ends too early."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count < 0 or count > len(self.data) - self.at:
            raise self.damaged(f"it ends inside its header: {count:,} bytes are wanted at {self.at:,}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        """The next number, in the code of `struct`."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        """The next text."""
        raw = self.take(self.number("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.damaged(f"a name at byte {self.at:,} is no UTF-8") from None

    def count(self, smallest: int, what: str) -> int:
        """The next number, of things that take at least so many bytes each."""
        number = self.number("Q")
        if number > (len(self.data) - self.at) // smallest:
            raise self.damaged(f"it announces {number:,} {what}, more than it has room for")
        return number

    def value(self, kind: int, *, nested: bool = False) -> _Value:
        """The next value of a key."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or nested:
            raise self.damaged(f"a key has a value of type {kind}{' inside an array' if nested else ''}")
        of = self.number("I")
        size = struct.calcsize(_SCALARS[of]) if of in _SCALARS else 8
        return tuple(self.value(of, nested=True) for _ in range(self.count(size, "array elements")))  # type: ignore[misc]

    def damaged(self, what: str) -> FileFormatError:
        """The error for a file that is not as it should be."""
        return FileFormatError(f"{self.path} is no GGUF file that can be read: {what}. Fetch it again")


def read_gguf(path: Path) -> tuple[Header, dict[str, int]]:
    """Read and check a GGUF file's head, and the file's length against it.

    Returns:
        The header, with shapes in torch's order, and where each tensor's bytes start.

    Raises:
        SourceError: there is no file, or it may not be read.
        FileFormatError: the file is damaged, of another model, or has a type that is not supported.
    """
    with _opened(path) as data:
        return _read(_Cursor(path, data))


def _read(cursor: _Cursor) -> tuple[Header, dict[str, int]]:
    """The head, from front to back."""
    if cursor.take(4) != b"GGUF":
        raise cursor.damaged("it does not start with GGUF")
    version = cursor.number("I")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
        raise cursor.damaged(f"it is of version {version}{', with its bytes swapped' * swapped}, not 2 or 3")
    tensors, keys = cursor.count(24, "tensors"), cursor.count(13, "keys")
    values: dict[str, _Value] = {}
    for _ in range(keys):
        key = cursor.string()
        if key in values:
            raise cursor.damaged(f"it has the key {key} twice")
        values[key] = cursor.value(cursor.number("I"))
    architecture = values.get("general.architecture", "")
    if architecture not in ARCHITECTURES:
        raise FileFormatError(
            f"{cursor.path} is a GGUF file of {architecture}, not of Stable Diffusion 3: name one whose "
            "general.architecture is sd3"
        )
    entries = [_entry(cursor) for _ in range(tensors)]
    offsets = _check_ranges(cursor, entries, values.get("general.alignment", 32))
    infos = {name: TensorInfo(_shape(name, shape, values, cursor), kind) for name, shape, kind, _ in entries}
    texts = {key: value for key, value in values.items() if isinstance(value, str)}
    return Header(infos, texts), offsets


def _opened(path: Path) -> mmap.mmap:
    """The file's bytes, for reading its head."""
    try:
        if path.stat().st_size == 0:
            raise FileFormatError(f"{path} is empty (0 bytes): the download did not happen. Fetch it again")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise SourceError(f"there is no file {path}") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], str, int]:
    """One tensor: its name, its shape in torch's order, its type and its offset."""
    name = cursor.string()
    axes = cursor.number("I")
    if not 1 <= axes <= 4:
        raise cursor.damaged(f"{name} has {axes} axes, not 1 to 4")
    sizes = [cursor.number("Q") for _ in range(axes)]
    if any(not 0 < size < 2**40 for size in sizes):
        raise cursor.damaged(f"{name} has the sizes {sizes}")
    number, offset = cursor.number("I"), cursor.number("Q")
    if number in _UNSUPPORTED:
        raise FileFormatError(
            f"{cursor.path}: {name} is of the type {_UNSUPPORTED[number]}, which is not supported: fetch one "
            f"in {', '.join(BLOCKS)}, F16, BF16 or F32"
        )
    kind = DENSE.get(number) or _QUANTISED.get(number)
    if kind is None:
        raise cursor.damaged(f"{name} is of the type {number}, which GGUF does not have")
    if kind in BLOCKS and sizes[0] % BLOCKS[kind].size:
        raise cursor.damaged(f"{name} is {kind} with rows of {sizes[0]}, no multiple of {BLOCKS[kind].size}")
    return name, tuple(reversed(sizes)), kind, offset


def _check_ranges(
    cursor: _Cursor, entries: list[tuple[str, tuple[int, ...], str, int]], alignment: object
) -> dict[str, int]:
    """See that the tensors' bytes lie inside the file, aligned and apart; where each starts."""
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise cursor.damaged(f"its general.alignment is {alignment!r}, no power of two")
    start = -(-cursor.at // alignment) * alignment
    offsets: dict[str, int] = {}
    end = 0
    for name, shape, kind, offset in sorted(entries, key=lambda entry: entry[3]):
        if name in offsets:
            raise cursor.damaged(f"it has the tensor {name} twice")
        if offset % alignment or offset < end:
            raise cursor.damaged(f"{name} starts at {offset:,}, unaligned or inside another tensor")
        end = offset + TensorInfo(shape, kind).nbytes
        if start + end > len(cursor.data):
            raise FileFormatError(
                f"{cursor.path} is truncated: {name} ends at byte {start + end:,} and the file at "
                f"{len(cursor.data):,}. The download was interrupted; fetch it again"
            )
        offsets[name] = start + offset
    return offsets


def _shape(
    name: str, shape: tuple[int, ...], values: Mapping[str, _Value], cursor: _Cursor
) -> tuple[int, ...]:
    """The shape that a tensor had in torch, where GGUF's differs."""
    original = values.get(f"comfy.gguf.orig_shape.{name}")
    if original is not None:
        sizes = original if isinstance(original, tuple) else ()
        if not all(isinstance(size, int) for size in sizes) or prod(sizes) != prod(shape):
            raise cursor.damaged(f"{name} of {list(shape)} cannot have had the shape {original!r}")
        return tuple(int(size) for size in sizes)
    if name.endswith("pos_embed") and len(shape) == 2:  # ggml drops a leading axis of 1
        return (1, *shape)
    return shape


class MappedGGUF:
    """The tensors of a GGUF file, mapped into memory, as `MappedFile` maps a safetensors file."""

    def __init__(self, path: Path) -> None:
        """Check the file and map it; raises as `read_gguf` does."""
        self.header, self._offsets = read_gguf(path)
        self._data = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def __getitem__(self, name: str) -> Tensor:
        """The tensor's numbers: as stored where they are plain, else unpacked to float32."""
        info = self.header.tensors[name]
        if info.dtype in BLOCKS:
            return self.packed(name).unpack()
        return self._bytes(name).view(_TORCH[info.dtype]).view(info.shape)

    def packed(self, name: str) -> Packed:
        """A tensor of blocks as it is stored."""
        info = self.header.tensors[name]
        columns = info.shape[-1]
        block = BLOCKS[info.dtype]
        rows = self._bytes(name).view(-1, columns // block.size * block.nbytes)
        return Packed(info.dtype, rows, info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def _bytes(self, name: str) -> Tensor:
        start = self._offsets[name]
        return self._data[start : start + self.header.tensors[name].nbytes]


_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
