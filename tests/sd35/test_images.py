"""Pictures in any form become images in [-1, 1], and what is none is refused rather than guessed."""

import numpy as np
import pytest
import torch
from PIL import Image

from sd35 import SettingsError
from sd35.images import as_image


def test_every_form_of_one_picture_gives_one_image(pipe, tmp_path) -> None:
    picture = pipe.generate("a red circle", steps=2).images[0]
    picture.save(tmp_path / "a.png")
    image = as_image(picture)
    assert (image.shape, float(image.min()) >= -1, float(image.max()) <= 1) == ((1, 3, 32, 32), True, True)
    path = tmp_path / "a.png"
    for other in (np.asarray(picture), path, str(path), [picture], [path], image):
        assert torch.equal(as_image(other), image)
    assert as_image([picture, np.asarray(picture)]).shape == (2, 3, 32, 32)
    assert torch.equal(pipe.encode(picture), pipe.encode(image))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
            r"floats in \[-1, 1\], got torch.uint8: pass",
        ),
        (255 * torch.rand(1, 3, 16, 16), "if white is 255, pass image / 127.5 - 1"),
        (torch.rand(1, 3, 16, 16), r"If white is 1 and black 0, pass 2 \* image - 1"),
        (torch.linspace(-0.05, 1.06, 768).view(1, 3, 16, 16), "values of -0.05 to 1.06 only. If white is 1"),
        (torch.zeros(3, 16, 16), r"an image must be \(B, 3, H, W\), got \(3, 16, 16\)"),
        (torch.full((1, 3, 16, 16), torch.nan), r"an image must be in \[-1, 1\], got values of nan"),
        ([], "expected a picture"),
        (3, "expected a picture: .* got int"),
        ([Image.new("RGB", (16, 16)), Image.new("RGB", (32, 16))], "must have one size"),
    ],
)
def test_what_is_no_image_is_refused(pipe, image, message) -> None:
    with pytest.raises(SettingsError, match=message):
        pipe.encode(image)


def test_a_picture_about_middle_grey_is_a_picture(pipe) -> None:
    image = torch.linspace(-0.1, 0.1, 768).view(1, 3, 16, 16)
    assert pipe.encode(image).shape == (1, 16, 2, 2)


def test_a_picture_with_one_dark_pixel_is_a_picture(pipe) -> None:
    image = torch.ones(1, 3, 16, 16)
    image[0, 0, 0, 0] = -0.11
    assert pipe.encode(image).shape == (1, 16, 2, 2)


def test_a_picture_as_bright_as_that_is_a_picture(pipe) -> None:
    assert pipe.encode(Image.new("RGB", (16, 16), "white")).shape == (1, 16, 2, 2)
