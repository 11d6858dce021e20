"""Pictures of all kinds are read, and what is changed in them is said; sizes are fitted as asked."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from sd35 import SettingsError
from sd35.fitting import fitted, grey, latent_mask, pasted, seam
from sd35.opening import open_masks, open_pictures
from vae.image import save_png16, to_tensor

RGB = Image.fromarray(np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3))


def turned() -> Image.Image:
    picture, exif = RGB.copy(), Image.Exif()
    exif[0x0112] = 6
    picture.info["exif"] = exif.tobytes()
    return picture


def half_seen() -> Image.Image:
    picture = RGB.convert("RGBA")
    picture.putpixel((0, 0), (10, 20, 30, 100))
    return picture


def profiled() -> Image.Image:
    picture = RGB.copy()
    picture.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return picture


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (RGB, None),
        (RGB.convert("L"), None),
        (RGB.convert("RGBA"), None),
        (RGB.quantize(16), None),
        (half_seen(), "laid over white"),
        (RGB.convert("CMYK"), "converted from CMYK"),
        (profiled(), "is not applied"),
    ],
)
def test_what_is_changed_is_said(picture, said) -> None:
    (opened,) = open_pictures(picture)
    assert opened.data.shape == (1, 3, 12, 16)
    assert [said in note for note in opened.notes] == ([] if said is None else [True])
    if said is None:
        assert torch.equal(opened.data, to_tensor(picture.convert("RGB")))


def test_exif_is_turned_and_sixteen_bits_are_kept(tmp_path) -> None:
    turned().save(tmp_path / "turned.png", exif=turned().info["exif"])
    (opened,) = open_pictures(tmp_path / "turned.png")
    assert opened.data.shape == (1, 3, 16, 12)
    assert opened.notes == ("turned.png: turned upright, as its EXIF orientation says",)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_png16(image, tmp_path / "deep.png")
    (opened,) = open_pictures(str(tmp_path / "deep.png"))
    assert float((opened.data - image).abs().max()) < 2e-5
    assert opened.notes == ()


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
        torch.full((1, 3, 16, 16), 200.0),
        torch.full((1, 3, 16, 16), torch.nan),
        np.zeros((16, 16, 3), np.float32),
        torch.full((1, 16, 4, 4), torch.inf),
        3,
    ],
)
def test_what_does_not_say_what_its_values_mean_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"must be|must hold|expected|hold NaN"):
        open_pictures(wrong)


def test_one_picture_has_one_hash_however_it_comes(tmp_path) -> None:
    RGB.save(tmp_path / "a.png")
    RGB.save(tmp_path / "b.bmp")
    found = [tmp_path / "a.png", tmp_path / "b.bmp", RGB, np.array(RGB), to_tensor(RGB)]
    assert len({open_pictures(one)[0].shown.digest for one in found}) == 1
    other = RGB.copy()
    other.putpixel((3, 3), (0, 0, 1))
    assert open_pictures(other)[0].shown.digest != open_pictures(RGB)[0].shown.digest


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_fits(how) -> None:
    """In 8 bits as Pillow does it, to the last bit; and of more bits close to that."""
    image = to_tensor(RGB)
    found = fitted(image, 32, 48, how)
    assert found.shape == (1, 3, 48, 32)
    if how == "stretch":
        assert torch.equal(found, to_tensor(RGB.resize((32, 48), Image.Resampling.LANCZOS)))
    if how == "crop":
        box = (4, 0, 12, 12)
        assert torch.equal(found, to_tensor(RGB.resize((32, 48), Image.Resampling.LANCZOS, box)))
    if how == "pad":
        assert torch.equal(found[:, :, :12], found[:, :, 12:13].expand(-1, -1, 12, -1))
        assert torch.equal(fitted(image, 32, 48, how, 1.0)[:, :, :12], torch.ones(1, 3, 12, 32))
    deep = (image + 1e-4 * torch.rand_like(image)).clamp(-1, 1)
    assert float((fitted(deep, 32, 48, how) - found).abs().mean()) < 0.01  # Pillow clips between its passes
    assert fitted(image, 16, 12, how) is image


def test_masks_of_all_kinds_are_one() -> None:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, 9:] = True
    picture = Image.fromarray((mask.numpy() * 255).astype(np.uint8))
    forms = [mask, mask.float(), mask.float()[None, None], mask.numpy(), picture, picture.convert("RGB")]
    assert len({open_masks(one)[0].shown.digest for one in forms}) == 1
    assert torch.equal(grey(open_masks(mask)[0].data) > 0, mask[None, None])
    assert latent_mask(mask[None, None].float(), "nearest").sum() == 0
    assert latent_mask(mask[None, None].float(), "any").sum() == 2


def test_a_seam_lies_inside_the_mask() -> None:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 4:28, :20] = 1
    shown = seam(mask, 6)
    assert torch.equal(shown == 0, (mask == 0) | (shown == 0))
    assert bool((shown[mask == 0] == 0).all())
    assert shown[0, 0, 16, 8] == 1
    assert bool((shown[0, 0, 16, 12:20].diff() <= 0).all())
    assert torch.equal(seam(mask, 0), mask)
    picture, drawn = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    whole = pasted(drawn, picture, mask, 6)
    assert torch.equal(whole[(mask == 0).expand_as(whole)], picture[(mask == 0).expand_as(picture)])
    with pytest.raises(SettingsError, match="smaller feather"):
        seam(mask, 24)
