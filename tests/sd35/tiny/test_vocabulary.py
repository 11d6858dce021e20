import json
import re

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE

from sd35.tiny.captions import caption
from sd35.tiny.scenes import random_scene
from sd35.tiny.vocabulary import Tokenizers, byte_symbols, learn_merges, words, write_tokenizers
from textenc.tokenizer import CLIPTokenizer, T5Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizers(folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder) -> Tokenizer:
    """The model alone: what it does to one word."""
    vocabulary, merges = (str(folder / "tokenizer" / name) for name in ("vocab.json", "merges.txt"))
    return Tokenizer(BPE.from_file(vocabulary, merges, end_of_word_suffix="</w>"))


@pytest.fixture(scope="module")
def t5(folder) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer_3" / "tokenizer.json"))


def test_words_are_those_of_the_captions(generator):
    said = {word for _ in range(3000) for word in caption(random_scene(generator), generator).split()}
    assert said <= set(words())
    assert len(words()) < 80


def test_each_word_is_one_token_of_clip(clip):
    for word in words():
        for letters in re.findall("[a-z]+", word):  # CLIP parts words at hyphens beforehand
            assert clip.encode(letters).tokens == [f"{letters}</w>"]


def test_another_word_falls_apart_and_comes_together_again(clip):
    tokens = clip.encode("hexagon").tokens
    assert len(tokens) > 1
    assert "".join(tokens) == "hexagon</w>"


def test_clip_ids_are_in_the_official_order(folder):
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    merges = (folder / "tokenizer" / "merges.txt").read_text().splitlines()
    symbols = list(vocabulary)
    assert list(vocabulary.values()) == list(range(len(symbols)))
    assert symbols[:256] == byte_symbols()
    assert symbols[256:512] == [f"{symbol}</w>" for symbol in byte_symbols()]
    assert merges[0] == "#version: 0.2"
    assert symbols[512:-2] == [merge.replace(" ", "") for merge in merges[1:]]
    assert symbols[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert len(symbols) < 900


def test_byte_symbols_are_those_of_the_official_vocabulary(shared_reference):
    official = json.loads((shared_reference / "tokenizers/clip/vocab.json").read_text())
    assert sorted(official, key=official.__getitem__)[:256] == byte_symbols()


def test_merges_are_learned_by_frequency_then_alphabet():
    # "ab</w>" is seen in all three words; then "c" before it in two.
    assert learn_merges(["ab", "cab", "dcab"]) == [("a", "b</w>"), ("c", "ab</w>"), ("d", "cab</w>")]
    assert learn_merges(["zy", "ba"]) == [("b", "a</w>"), ("z", "y</w>")]


def test_t5_takes_whole_words_and_ends_with_the_end(t5):
    encoded = t5.encode("A small  red circle\non the left, with a white background.")
    expected = "▁a ▁small ▁red ▁circle ▁on ▁the ▁left , ▁with ▁a ▁white ▁background . </s>"
    assert encoded.tokens == expected.split()
    assert [t5.token_to_id(special) for special in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    assert t5.get_vocab_size() < 400
    for word in words():
        assert t5.encode(word).tokens == [f"▁{word}", "</s>"]


def test_t5_spells_what_it_does_not_know(t5):
    assert t5.encode("dog").tokens == ["▁", "d", "o", "g", "</s>"]
    assert t5.encode("你").ids[-2:] == [2, 1]
    assert t5.encode("").tokens == ["</s>"]


def test_the_files_are_the_same_each_time(folder, tmp_path):
    write_tokenizers(tmp_path)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert [str(file) for file in files] == [
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "tokenizer_2/merges.txt",
        "tokenizer_2/vocab.json",
        "tokenizer_3/tokenizer.json",
    ]
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes()


def test_textenc_reads_the_files(folder):
    text = "A small gray ring on the left."
    clip_l = CLIPTokenizer.load(folder / "tokenizer", pad_with_end=True)(text)
    clip_g = CLIPTokenizer.load(folder / "tokenizer_2", pad_with_end=False)(text)
    t5 = T5Tokenizer.load(folder / "tokenizer_3")(text)
    ids = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    said = [ids[f"{word}</w>"] for word in ["a", "small", "gray", "ring", "on", "the", "left", "."]]
    start, end = ids["<|startoftext|>"], ids["<|endoftext|>"]
    assert clip_l.ids == [start, *said, *[end] * 68]
    assert clip_g.ids == [start, *said, end, *[0] * 67]
    assert t5.ids[8:] == [1, *[0] * 68]
    assert 2 not in t5.ids


def test_batches_are_encoded_as_textenc_encodes_each(folder):
    tokenizers = Tokenizers(folder)
    texts = ["", "a red ring", "a medium-sized violet plus at the top with a gray background"]
    padded = tokenizers.encode(texts, length=77)
    for ids, encoder in zip(padded, (tokenizers.clip_l, tokenizers.clip_g, tokenizers.t5), strict=True):
        assert ids.tolist() == [encoder(text).ids for text in texts]
    short = tokenizers.encode(texts)
    assert [ids.shape[1] for ids in short] == [15, 15, 12]
    assert all(torch.equal(ids, full[:, : ids.shape[1]]) for ids, full in zip(short, padded, strict=True))
    assert max(ids.max() for ids in short[:2]) == tokenizers.clip_size - 1
    assert short[2].max() < tokenizers.t5_size


def test_a_caption_beyond_the_length_is_refused(folder):
    with pytest.raises(ValueError, match="5 tokens, more than the 4"):
        Tokenizers(folder).encode(["a red ring"], length=4)
