"""Words of a prompt, by their pieces among the tokens."""

import pytest

from sd35.attention import WordError, find_word, token_labels, words_of
from textenc import Prompt


def pieces(encoding, positions, encoder):
    return [t.piece for t in encoding.tokens[0] if t.position in positions and t.encoder == encoder]


@pytest.fixture(scope="module")
def encoding(text):
    return text.encode("a red circle above a blue circle, photographed")


def test_a_word_has_its_pieces_in_every_encoder(encoding):
    positions = find_word(encoding, "red")
    assert positions == (2, 78)  # behind <start> and "a"; T5 has no start
    assert pieces(encoding, positions, "clip_l") == ["red</w>"]
    assert pieces(encoding, positions, "clip_g") == ["red</w>"]
    assert pieces(encoding, positions, "t5") == ["▁red"]


def test_a_word_of_many_pieces(encoding):
    positions = find_word(encoding, "photographed")
    assert "".join(pieces(encoding, positions, "clip_l")) == "photographed</w>"
    assert "".join(pieces(encoding, positions, "t5")).lstrip("▁") == "photographed"
    assert len(positions) > 4


def test_all_occurrences_or_one_and_phrases(encoding):
    both = find_word(encoding, "CIRCLE")
    first, second = (find_word(encoding, "circle", occurrence=index) for index in range(2))
    assert both == tuple(sorted(first + second))
    assert not set(first) & set(second)
    assert find_word(encoding, "blue circle") == tuple(sorted(find_word(encoding, "blue") + second))


def test_one_encoder(encoding):
    assert find_word(encoding, "red", encoder="clip_g") == (2,)
    assert find_word(encoding, "red", encoder="t5") == (78,)
    with pytest.raises(WordError, match="encoder must be one of clip_l, clip_g, t5, got 'clip'"):
        find_word(encoding, "red", encoder="clip")


def test_words_that_are_not_there(encoding):
    with pytest.raises(WordError, match=r"'circel' is not in the prompt 'a red .*'; did you mean circle\?"):
        find_word(encoding, "circel")
    with pytest.raises(WordError, match="'circ' is not in the prompt"):
        find_word(encoding, "circ")  # a part of a word is no word
    with pytest.raises(WordError, match="is not in the prompt"):
        find_word(encoding, " ")
    with pytest.raises(
        WordError, match="'circle' is 2 times in the prompt: occurrence must be 0 to 1, got 2"
    ):
        find_word(encoding, "circle", occurrence=2)


def test_words_that_were_cut_off(text):
    long = text.encode("a red circle " * 30 + "and a star")
    assert find_word(long, "star", encoder="t5") == find_word(long, "star")  # T5 reads on where CLIP stops
    with pytest.raises(
        WordError, match=r"in the prompt, but no encoder read it: clip_l stopped at '.*circle"
    ):
        find_word(long, "star", encoder="clip_l")
    longer = text.encode("a red circle " * 100 + "and a star", policy="diffusers")
    with pytest.raises(WordError, match="no encoder read it"):
        find_word(longer, "star")
    assert "star" not in words_of(longer)


def test_prompts_of_their_own_for_each_encoder(text):
    encoding = text.encode(Prompt("a star", t5="a ring"))
    assert find_word(encoding, "ring") == (78,)
    assert find_word(encoding, "star") == (2,)
    with pytest.raises(WordError, match="'a star' / 'a ring'"):
        find_word(encoding, "cross")


def test_words_of_a_prompt(encoding):
    assert words_of(encoding) == ["red", "circle", "above", "blue", "photographed"]


def test_labels(encoding):
    labels = token_labels(encoding)
    assert len(labels) == 154
    assert labels[0] == "clip_l <start> | clip_g <start>"
    assert labels[2] == "clip_l red</w> | clip_g red</w>"
    assert labels[76] == "clip_l <pad> | clip_g <pad>"
    assert labels[78] == "t5 ▁red"
    assert labels[153] == "t5 <pad>"
    assert "t5 <end>" in labels


def test_labels_of_a_missing_encoder(text):
    from dataclasses import replace

    encoding = replace(text, t5=None).encode("a red circle")
    assert token_labels(encoding)[100] == "(nothing)"
    assert find_word(encoding, "red") == (2,)
    with pytest.raises(WordError, match="there are no tokens of t5"):
        find_word(encoding, "red", encoder="t5")
