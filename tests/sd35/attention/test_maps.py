"""Heat maps and numbers from recorded maps."""

import pytest
import torch

from sd35.attention import WordError, attention_maps, find_word, heat_share
from sd35.taps import TapError

PROMPT = "a red circle above a photographed circle"


@pytest.fixture(scope="module")
def maps(pipe):
    with attention_maps(pipe.mmdit) as maps:
        pipe.generate(PROMPT, steps=2)
    return maps


@pytest.mark.parametrize("word", ["red", "circle", "photographed", "red circle"])
def test_a_heat_map_sums_the_pieces_of_a_word(maps, word):
    positions = list(find_word(maps.encoding(), word))
    reads = torch.stack([maps.part("image-text", block=block) for block in range(3)]).mean(dim=0)
    torch.testing.assert_close(maps.heatmap(word), reads[:, positions].sum(dim=1).reshape(3, 4))
    read_from = maps.part("text-image", block=1)[positions].sum(dim=0).reshape(3, 4)
    torch.testing.assert_close(maps.heatmap(word, part="text-image", block=1), read_from)


def test_pieces_by_encoder_and_occurrence_add_up(maps):
    whole = maps.heatmap("circle")
    by_encoder = maps.heatmap("circle", encoder="clip_l") + maps.heatmap("circle", encoder="t5")
    by_place = maps.heatmap("circle", occurrence=0) + maps.heatmap("circle", occurrence=1)
    torch.testing.assert_close(by_encoder, whole)
    torch.testing.assert_close(by_place, whole)
    torch.testing.assert_close(
        maps.heatmap("circle", block=[0, 2]),
        (maps.heatmap("circle", block=0) + maps.heatmap("circle", block=2)) / 2,
    )


def test_pooled_heat_maps(pipe):
    with attention_maps(pipe.mmdit) as fine, attention_maps(pipe.mmdit, pool=2) as coarse:
        pipe.generate(PROMPT, steps=1)
    heat, pooled = fine.heatmap("red"), coarse.heatmap("red")
    assert pooled.shape == (2, 2)
    torch.testing.assert_close(pooled[0], heat[:2].reshape(2, 2, 2).mean(dim=(0, 2)))
    torch.testing.assert_close(pooled[1], heat[2].reshape(2, 2).mean(dim=1))


def test_labels_name_the_rows(maps):
    labels = maps.labels()
    assert len(labels) == maps.part("text-image").shape[0]
    assert labels[find_word(maps.encoding(), "red")[0]] == "clip_l red</w> | clip_g red</w>"
    assert maps.blocks == [0, 1, 2]


def test_what_was_not_recorded(maps):
    with pytest.raises(WordError, match="did you mean circle"):
        maps.heatmap("circles")
    with pytest.raises(TapError, match=r"did you mean image-text"):
        maps.part("images-text")
    with pytest.raises(TapError, match="no part image-image was recorded, only image-text, text-image"):
        maps.part("image-image")
    with pytest.raises(TapError, match="no block 5 was recorded, only 0, 1, 2"):
        maps.heatmap("red", block=[0, 5])
    with pytest.raises(TapError, match="no image 1 was recorded, only 0"):
        maps.part("image-text", sample=1)
    with pytest.raises(TapError, match=r"no step 0 was recorded, only the mean of all; keep=\['step'\]"):
        maps.heatmap("red", step=0)
    with pytest.raises(TapError, match=r"no head 0 was recorded: pass keep=\['head'\]"):
        maps.heatmap("red", head=0)
    with pytest.raises(TapError, match="'image-text' or 'text-image', got 'text-text'"):
        maps.heatmap("red", part="text-text")


def test_without_a_prompt(mmdit, text):
    encoding = text.encode(["a red circle", "a star"])
    args = (torch.zeros(2, 16, 4, 4), torch.ones(2), encoding.context, encoding.pooled)
    with attention_maps(mmdit, branch=None) as maps:
        mmdit(*args)
    assert maps.part("image-text").shape == (4, 154)
    with pytest.raises(WordError, match="pass encoding= to attention_maps"):
        maps.heatmap("red")
    with attention_maps(mmdit, branch=None, encoding=encoding) as maps:
        mmdit(*args)
    assert maps.heatmap("star", sample=1).shape == (2, 2)


def test_share_of_heat_in_a_region():
    heat = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    region = torch.zeros(8, 8)
    region[:4, :4] = 1
    assert heat_share(heat, region) == 0.75
    assert heat_share(torch.ones(2, 2), region) == 0.25
    region[:4, 4:6] = 1  # half of the second patch
    assert heat_share(heat, region) == pytest.approx(0.875)
    with pytest.raises(ValueError, match="there is no heat"):
        heat_share(torch.zeros(2, 2), region)
    with pytest.raises(ValueError, match="two matrices"):
        heat_share(heat, region[None])
