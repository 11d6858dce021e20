"""Heat maps and sheets as pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from sd35.attention import WordError, attention_maps, attention_sheet, heat_picture, overlay

HOT = torch.tensor([[0.0, 0.0], [0.0, 2.0]])


def lightness(picture):
    return np.asarray(picture.convert("L"), dtype=float)


def test_the_hottest_place_is_the_brightest():
    light = lightness(heat_picture(HOT, (40, 20)))
    assert light.shape == (20, 40)
    assert light[-1, -1] > 240
    assert light[0, 0] < 5
    ramp = lightness(heat_picture(torch.linspace(0, 1, 64)[None], (64, 8)))[0]
    assert (np.diff(ramp) >= 0).all()


def test_one_scale_for_several_maps():
    half = lightness(heat_picture(HOT / 2, (8, 8), top=2.0))
    assert half[-1, -1] < lightness(heat_picture(HOT, (8, 8), top=2.0))[-1, -1] - 50
    assert np.array_equal(lightness(heat_picture(HOT / 2, (8, 8))), lightness(heat_picture(HOT, (8, 8))))
    assert lightness(heat_picture(torch.zeros(2, 2), (8, 8))).max() < 5
    with pytest.raises(ValueError, match=r"\(rows, columns\), got \(2, 2, 1\)"):
        heat_picture(HOT[..., None], (8, 8))


def test_an_overlay_keeps_the_picture_where_there_is_no_heat():
    picture = Image.new("RGB", (32, 32), (255, 255, 255))
    over = np.asarray(overlay(picture, HOT))
    assert over.shape == (32, 32, 3)
    assert (over[0, 0] > 240).all()
    assert over[-1, -1, 2] < 220
    grey = np.asarray(overlay(Image.new("RGB", (32, 32), (200, 0, 0)), HOT))[0, 0]
    assert 0 < grey[1] < grey[0] < 200


@pytest.mark.parametrize(("size", "blocks"), [((64, 48), None), ((32, 96), [1])])
def test_a_sheet(pipe, size, blocks):
    with attention_maps(pipe.mmdit, blocks=blocks) as maps:
        result = pipe.generate("a red circle above a blue square", steps=1, width=size[0], height=size[1])
    picture = result.images[0]
    sheet = attention_sheet(maps, picture)
    narrow = attention_sheet(maps, picture, words=["red"])
    assert sheet.width - narrow.width == 4 * 186  # five words less one
    assert (narrow.height - attention_sheet(maps, picture, words=["blue"]).height) == 0
    assert not np.array_equal(np.asarray(narrow), np.asarray(attention_sheet(maps, picture, words=["blue"])))
    assert len(sheet.getcolors(2**24)) > 100
    with pytest.raises(WordError, match="did you mean circle"):
        attention_sheet(maps, picture, words=["red", "circl"])


def test_a_prompt_without_words_and_a_very_long_one(pipe):
    with attention_maps(pipe.mmdit) as maps:
        result = pipe.generate("the a", steps=1)
    with pytest.raises(WordError, match="no word"):
        attention_sheet(maps, result.images[0])
    with attention_maps(pipe.mmdit) as maps:
        result = pipe.generate("a large red circle above " * 12, steps=1)
    sheet = attention_sheet(maps, result.images[0], words=["circle"])
    assert sheet.width < 600
