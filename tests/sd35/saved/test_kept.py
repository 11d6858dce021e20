"""Latents kept inside a picture's own file."""

import numpy as np
import pytest
import torch
from PIL import Image

from sd35.errors import SettingsError
from sd35.saved.png import png_chunks, png_info, read_settings
from sd35.tasks.source import open_source


@pytest.mark.parametrize("bits", [8, 16])
def test_a_picture_of_bitexact_returns_to_its_very_noise(pipe, tmp_path, bits):
    """Each of two, drawn one by one, from its own file alone."""
    result = pipe.generate(["a red circle", "a star"], steps=3, solver="bitexact", seed=3)
    paths = result.save(tmp_path / "a.png", bits=bits, keep_latents=True)
    for index, path in enumerate(paths):
        inverted = pipe.invert(path, measure=False)
        assert inverted.report.method == "undo"
        assert torch.equal(inverted.noise, result.noise[index : index + 1])
        assert inverted.settings.prompts == result.settings.prompts[index : index + 1]


def test_of_another_solver_the_latents_are_kept(pipe, tmp_path):
    result = pipe.generate("a red circle", steps=2)
    (path,) = result.save(tmp_path / "a.png", keep_latents=True)
    assert torch.equal(open_source(path).data, result.latents)
    (bare,) = result.save(tmp_path / "b.png")
    assert open_source(bare).latents is None
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(bare)))


def test_pixels_that_were_changed_are_inverted_themselves_and_told(pipe, tmp_path):
    (path,) = pipe.generate("a red circle", steps=2).save(tmp_path / "a.png", keep_latents=True)
    with path.open("rb") as file:
        kept = next(data for name, data in png_chunks(file) if name == b"sdLA")
    info, other = png_info(read_settings(path)), tmp_path / "b.png"
    info.add(b"sdLA", kept)
    with Image.open(path) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other, pnginfo=info)
    source = open_source(other)
    assert source.latents is None
    assert "its pixels are no longer theirs" in source.notes[0]


def test_latents_are_not_kept_without_settings_or_of_bits_that_no_picture_has_alone(pipe, tmp_path):
    with pytest.raises(SettingsError, match="needs metadata"):
        pipe.generate("a", steps=2).save(tmp_path / "a.png", keep_latents=True, metadata=False)
    both = pipe.generate(["a", "b"], steps=2, solver="bitexact", batch_size=2)
    with pytest.raises(SettingsError, match="drawn alone"):
        both.save(tmp_path / "a.png", keep_latents=True)
    assert not list(tmp_path.iterdir())
