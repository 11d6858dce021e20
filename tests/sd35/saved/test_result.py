"""Pictures in files."""

import numpy as np
import pytest
import torch
from PIL import Image

from sd35 import SettingsError, read_settings
from vae.image import read


@pytest.fixture(scope="module")
def result(pipe):
    return pipe.generate(["a red circle", "b"], steps=1)


def test_several_pictures_are_numbered_and_each_carries_its_own_settings(result, tmp_path) -> None:
    paths = result.save(tmp_path / "a.png")
    assert [path.name for path in paths] == ["a-000.png", "a-001.png"]
    for index, path in enumerate(paths):
        assert read_settings(path) == result.settings.of(index)
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(result.images[index]))


def test_settings_can_be_left_out(result, tmp_path) -> None:
    (path, _) = result.save(tmp_path / "a.png", metadata=False)
    with Image.open(path) as picture:
        assert picture.info == {}
    assert b"red circle" not in path.read_bytes()


def test_sixteen_bits_keep_more(result, tmp_path) -> None:
    fine, _ = result.save(tmp_path / "fine.png", bits=16)
    coarse, _ = result.save(tmp_path / "coarse.png")
    exact = result.image[:1].clamp(-1, 1)
    assert float((read(fine) - exact).abs().max()) <= 1.01 / 65535
    assert float((read(coarse) - exact).abs().max()) > 10 / 65535
    assert read_settings(fine) == result.settings.of(0)


def test_nothing_is_written_where_one_picture_exists(result, tmp_path) -> None:
    (tmp_path / "a-001.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"a-001\.png exists"):
        result.save(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a-001.png"]
    result.save(tmp_path / "a.png", overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_other_formats_are_refused(result, tmp_path) -> None:
    with pytest.raises(SettingsError, match=r"\.png"):
        result.save(tmp_path / "a.jpg")
    with pytest.raises(SettingsError, match="8 or 16 bits"):
        result.save(tmp_path / "a.png", bits=12)
    assert not list(tmp_path.iterdir())


def test_tensors_are_float32_on_the_cpu(result) -> None:
    for tensor in (result.image, result.latents, result.noise):
        assert (tensor.dtype, tensor.device.type, tensor.requires_grad) == (torch.float32, "cpu", False)
