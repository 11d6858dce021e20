"""Every file that only claims to be safetensors is told for what it is, before anything else is done."""

import json
import struct

import pytest
import torch

from weights import CheckpointError, FileFormatError, SourceError, load_vae
from weights.file import MAX_HEADER_BYTES, MappedFile, read_header


def packed(header: dict | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
BAD = {
    "zero-length": (b"", "is empty"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
    "HTML": (b"\n<!DOCTYPE html><html><body>Log in</body></html>", "web page"),
    "bare HTML": (b"<html>", "web page"),
    "JSON error": (b'{"error": "Repository not found"}', "JSON text"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is a picture"),
    "zip of torch.save": (b"PK\x03\x04" + bytes(100), "zip archive"),
    "pickle": (b"\x80\x02}q\x00." + bytes(100), "pickle"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(50), "GGUF"),
    "garbage": (b"\x11" * 7 + b"\x00" + b"\x11" * 64, "starts with 11 11"),
    "short garbage": (b"\x01\x02", "starts with 01 02"),
    "absurd header": (
        struct.pack("<Q", 2**62) + b"{}",
        "announces a header of 4,611,686,018,427,387,904 bytes",
    ),
    "header over the limit": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "announces a header"),
    "cut in the header": (packed(ONE, bytes(8))[:20], "truncated inside its header"),
    "cut in the data": (
        packed(ONE, bytes(7)),
        "truncated: its header announces 8 bytes of tensors, 7 are there",
    ),
    "bytes to spare": (packed(ONE, bytes(9)), "1 bytes after its last tensor"),
    "broken JSON": (packed(b'{"a": '), "damaged header"),
    "not an object": (packed(b'{"a": 3}'), "damaged header"),
    "a dtype of the format that torch has not": (
        packed({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, bytes(3)),
        "dtype 'F6_E2M3', which is not supported: fetch F32",
    ),
    "macOS's file": (b"\x00\x05\x16\x07" + bytes(4092), "macOS"),
    "negative size": (
        packed({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        "no counts",
    ),
    "wrong range": (
        packed({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        "and has 4",
    ),
    "a gap": (
        packed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
        "starts at byte 4",
    ),
    "no tensors": (packed({"__metadata__": {}}), "holds no tensors"),
    "metadata of numbers": (packed({"__metadata__": {"step": 3}, **ONE}, bytes(8)), "hold texts by name"),
    "metadata that is a list": (packed({"__metadata__": [], **ONE}, bytes(8)), "hold texts by name"),
}


ALIKE = ("bare HTML", "short garbage", "metadata that is a list")  # with the message of another kind


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_told_for_what_it_is(tmp_path, kind):
    content, message = BAD[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as error:
        load_vae(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_each_kind_of_file_has_a_message_of_its_own(tmp_path):
    told = set()
    for kind, (content, _) in BAD.items():
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        with pytest.raises(FileFormatError) as error:
            read_header(path)
        told.add((kind, str(error.value)))
    messages = {message for kind, message in told if kind not in ALIKE}
    assert len(messages) == len(BAD) - len(ALIKE)


def test_what_the_safetensors_library_refuses_is_refused_alike(tmp_path):
    """A size of `true` is 1 to Python, and no number to the library."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4)))
    with pytest.raises(
        FileFormatError, match=r"model\.safetensors cannot be mapped \(.*fetch the file again"
    ):
        MappedFile(path)


def test_what_is_not_supported_is_not_called_damaged(tmp_path):
    """Whole files in valid dtypes: quantised weights packed into integers, and dtypes that torch has not."""
    for dtype, size in (("U32", 4), ("U16", 2), ("U64", 8), ("C64", 8), ("F4", 1), ("F8_E8M0", 1)):
        path = tmp_path / f"{dtype}.safetensors"
        name = "decoder.conv_in.weight"
        shape = [2] if dtype == "F4" else [1]
        path.write_bytes(
            packed({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, bytes(size))
        )
        with pytest.raises(CheckpointError) as error:
            load_vae(path)
        assert "damaged" not in str(error.value)
        assert "again" not in str(error.value)


def test_a_pickle_under_its_own_name_is_never_opened(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(FileFormatError, match=r"never\s+opened"):
        load_vae(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match="there is no file or folder"):
        load_vae(tmp_path / "none.safetensors")


def test_header_lists_tensors_without_reading_them(official):
    header = read_header(official / "text_encoders" / "clip_g.safetensors")
    info = header.tensors["text_projection.weight"]
    assert (info.shape, info.dtype, info.parameters, info.nbytes) == (
        (128, 128),
        "F32",
        128 * 128,
        4 * 128 * 128,
    )
    assert header.metadata == {"format": "pt"}


def test_mapped_tensors_are_the_files_and_private(official, parts):
    path = official / "text_encoders" / "clip_l.safetensors"
    name = "text_model.final_layer_norm.weight"
    tensor = MappedFile(path)[name]
    assert torch.equal(tensor, parts["clip_l"][name])
    tensor.zero_()
    assert torch.equal(MappedFile(path)[name], parts["clip_l"][name]), "the file itself must not change"
