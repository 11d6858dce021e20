import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from vae.image import fit, read, save_png16, to_pil, to_tensor, to_uint8


def values(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def write_png(path, rows, *, width, colour, filters, depth=16):
    """A PNG by the letter of its specification, with a filter type for each row in turn."""
    bpp = {0: 1, 2: 3, 4: 2, 6: 4}[colour] * depth // 8
    above, body = bytes(len(rows[0])), b""
    for number, row in enumerate(rows):
        kind = filters[number % len(filters)]
        body += bytes([kind])
        for i, byte in enumerate(row):
            a, b, c = row[i - bpp] if i >= bpp else 0, above[i], above[i - bpp] if i >= bpp else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            body += bytes([(byte - (0, a, b, (a + b) // 2, paeth)[kind]) % 256])
        above = row
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


# -- pictures to tensors


def test_every_value_of_eight_bits_comes_back_by_rounding():
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = to_tensor(picture)
    assert image.shape == (1, 3, 16, 16)
    assert image.dtype == torch.float32
    assert (image.min(), image.max()) == (-1, 1)
    assert np.array_equal(np.asarray(to_pil(image))[:, :, 0], picture)


def test_channels_rows_and_columns_stay_in_place():
    picture = values(3, 5, 3)
    image = to_tensor(Image.fromarray(picture))
    assert np.array_equal(to_uint8(image)[0].movedim(0, 2).numpy(), picture)
    assert torch.equal(to_tensor(picture), image)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_modes_look_as_pillow_shows_them(mode):
    picture = Image.fromarray(values(4, 4, 3)).convert(mode)
    assert torch.equal(to_tensor(picture), to_tensor(picture.convert("RGB")))


def test_transparency_is_laid_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (255, 0, 51)
    expected = torch.tensor([-1.0, 1.0, 0.6])
    for picture in (rgba, Image.fromarray(rgba), Image.fromarray(rgba).convert("LA")):
        torch.testing.assert_close(to_tensor(picture)[0], expected.expand(3, 1, 3), rtol=0, atol=1e-6)


def test_palette_with_a_transparent_entry():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 0, 0])
    picture.putpixel((1, 0), 1)
    picture.info["transparency"] = 0
    assert to_uint8(to_tensor(picture))[0, :, 0].T.tolist() == [[255, 255, 255], [200, 0, 0]]


def test_exif_orientation_is_applied():
    picture = Image.fromarray(values(2, 3, 3))
    as_stored = to_tensor(picture)
    picture.getexif()[0x0112] = 6  # to be turned a quarter clockwise
    assert torch.equal(to_tensor(picture), torch.rot90(as_stored, -1, (2, 3)))


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 1), (2, 2, 3)])
def test_sixteen_bit_arrays(shape):
    image = to_tensor(np.full(shape, 65535, np.uint16))
    assert torch.equal(image, torch.ones(1, 3, 2, 2))
    assert to_tensor(np.full(shape, 1, np.uint16)).unique().item() == pytest.approx(2 / 65535 - 1, abs=6e-8)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "not empty"),
        (Image.new("F", (4, 4)), "mode 'F'"),
        (Image.new("I", (4, 4)), "mode 'I'"),
    ],
)
def test_pictures_that_say_too_little(picture, message):
    with pytest.raises(ValueError, match=message):
        to_tensor(picture)


# -- tensors to pictures


@pytest.mark.parametrize(
    ("level", "rounded", "truncated"), [(127.4, 127, 127), (127.6, 128, 127), (300.0, 255, 255), (-9.0, 0, 0)]
)
def test_rounding_by_name(level, rounded, truncated):
    image = torch.full((1, 3, 1, 1), 2 * level / 255 - 1)
    assert to_uint8(image, "diffusers").unique().item() == rounded
    assert to_uint8(image, "reference").unique().item() == truncated


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_widened_first(dtype):
    image = (torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(dtype)
    assert torch.equal(to_uint8(image), to_uint8(image.double()))


def test_gradients_do_not_matter():
    assert to_pil(torch.zeros(3, 2, 2, requires_grad=True)).size == (2, 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("write", [to_uint8, to_pil, lambda image: save_png16(image, "never_written.png")])
def test_broken_values_never_become_a_picture(bad, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = torch.zeros(1, 3, 4, 4, dtype=torch.float16)
    image[0, 1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"1 NaN or infinite values of 48 \(torch.float16\)"):
        write(image)
    assert not list(tmp_path.iterdir())


def test_unknown_rounding():
    with pytest.raises(ValueError, match="diffusers, reference, got 'floor'"):
        to_uint8(torch.zeros(1, 3, 2, 2), "floor")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (4, 4), (1, 1, 4, 4)])
def test_one_image_of_three_channels(shape):
    with pytest.raises(ValueError, match="3, H, W"):
        to_pil(torch.zeros(shape))


# -- sixteen bits


def test_sixteen_bits_come_back(tmp_path):
    image = to_tensor(values(20, 12, 3, dtype=np.uint16))
    save_png16(image, tmp_path / "a.png")
    assert torch.equal(read(tmp_path / "a.png"), image)


def test_sixteen_bits_are_within_half_a_step(tmp_path):
    image = (
        torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.2 - 1.1
    )
    save_png16(image[0], tmp_path / "a.png")
    assert (read(tmp_path / "a.png") - image.clamp(-1, 1)).abs().max() < 1 / 65535 + 1e-7


def test_pillow_reads_our_file_and_its_text(tmp_path):
    picture = values(5, 7, 3, dtype=np.uint16)
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a red circle")
    info.add_itxt("settings", "größer")
    save_png16(to_tensor(picture), tmp_path / "a.png", info)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.size == (7, 5)
        assert np.array_equal(np.asarray(opened), picture >> 8)
        assert opened.info["parameters"] == "a red circle"
        assert opened.info["settings"] == "größer"


@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (3,), (4,), (4, 1, 3, 2, 0)])
def test_other_programs_sixteen_bits(tmp_path, filters):
    picture = values(6, 5, 3, dtype=np.uint16)
    write_png(
        tmp_path / "a.png", [r.astype(">u2").tobytes() for r in picture], width=5, colour=2, filters=filters
    )
    assert torch.equal(read(tmp_path / "a.png"), to_tensor(picture))


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (6, 4)])
def test_sixteen_bits_of_grey_and_with_transparency(tmp_path, colour, channels):
    picture = values(6, 5, channels, dtype=np.uint16)
    write_png(
        tmp_path / "a.png", [r.astype(">u2").tobytes() for r in picture], width=5, colour=colour, filters=(4,)
    )
    assert torch.equal(read(tmp_path / "a.png"), to_tensor(picture))


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp"])
def test_reads_eight_bits(tmp_path, name):
    picture = Image.fromarray(values(8, 8, 3))
    picture.save(tmp_path / name, lossless=True)
    assert torch.equal(read(tmp_path / name), to_tensor(picture))


@pytest.mark.parametrize("damage", [b"", b"<html>", b"\x89PNG\r\n\x1a\n", "truncated", "truncated16"])
def test_damaged_files(tmp_path, damage):
    path = tmp_path / "a.png"
    if damage == "truncated16":
        save_png16(to_tensor(values(32, 32, 3, dtype=np.uint16)), path)
        damage = path.read_bytes()[:2000]
    elif damage == "truncated":
        Image.fromarray(values(32, 32, 3)).save(path)
        damage = path.read_bytes()[:1000]
    path.write_bytes(damage)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture"):
        read(path)


def test_missing_files_keep_their_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "a.png")


# -- sizes


@pytest.mark.parametrize(
    ("own", "asked", "got"),
    [
        ((100, 50), (None, None), (96, 48)),
        ((3, 3), (None, None), (16, 16)),
        ((100, 50), (64, None), (64, 48)),
        ((64, 32), (None, None), (64, 32)),
    ],
)
def test_fit(own, asked, got):
    assert fit(Image.new("RGB", own), *asked).size == got


def test_fit_changes_nothing_where_nothing_is_to_do():
    picture = Image.fromarray(values(32, 16, 3))
    assert np.array_equal(np.asarray(fit(picture)), np.asarray(picture))


def test_fit_crops_the_middle():
    picture = np.zeros((16, 48, 3), np.uint8)
    picture[:, 16:32] = 255
    assert (np.asarray(fit(Image.fromarray(picture), 16, 16))[:, 1:-1] == 255).all()
