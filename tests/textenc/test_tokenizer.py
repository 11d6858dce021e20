"""The tokenizers against the reference tokenizers' ids, and on small vocabularies."""

import json
import shutil
import struct

import pytest
from tokenizers import Tokenizer

from textenc import POLICIES, CLIPTokenizer, PromptPolicy, T5Tokenizer, VocabularyError
from textenc.reference import fill_window, words
from textenc.sentencepiece import read_sentencepiece

# transformers 5 rebuilds T5's pre-tokenizer from code and splits at control characters that count as white
# space; the vocabulary's own tokenizer.json, and transformers 4, do not. The one difference in 60 prompts.
DIFFUSERS_T5_DIFFERENCES = ["main43"]


@pytest.fixture(scope="module")
def cases(shared_reference):
    return json.loads((shared_reference / "tokenizers" / "tokens.json").read_text())["cases"]


@pytest.fixture(scope="module")
def official(shared_reference):
    folder = shared_reference / "tokenizers"
    return {
        "l": CLIPTokenizer.load(folder / "clip", pad_with_end=True),
        "g": CLIPTokenizer.load(folder / "clip", pad_with_end=False),
        "t5": T5Tokenizer.load(folder / "t5"),
        "spiece": T5Tokenizer.load(folder / "t5" / "spiece.model"),
    }


def different(cases, tokenizer, policy, expected):
    """The cases whose ids differ."""
    return [case["id"] for case in cases if tokenizer(case["text"], policy).ids != expected(case)]


def test_clip_gives_the_reference_ids(cases, official):
    assert len(cases) == 60
    assert not different(cases, official["l"], "reference", lambda case: case["clip_l_77"])
    for case in cases:  # beyond the window too
        encoded = official["l"].tokenizer.encode(case["text"], add_special_tokens=False)
        assert encoded.ids == case["clip"]["ids"][1:-1], case["id"]


def test_clip_gives_diffusers_ids(cases, official):
    assert not different(cases, official["l"], "diffusers", lambda case: case["clip_l_77"])
    assert not different(cases, official["g"], "diffusers", lambda case: case["clip_g_77"])


def test_clip_g_keeps_an_exclamation_mark_a_word(cases, official):
    """The difference that the policy makes: transformers takes "!" in a text for its pad."""
    assert different(cases, official["g"], "reference", lambda case: case["clip_g_77"]) == [
        "main16",
        "main50",
    ]


@pytest.mark.parametrize("kind", ["t5", "spiece"])
def test_t5_gives_the_reference_ids(cases, official, kind):
    def expected(case):
        return case["t5"]["ids"] + [0] * (77 - len(case["t5"]["ids"]))

    assert not different(cases, official[kind], "reference", expected)


@pytest.mark.parametrize("kind", ["t5", "spiece"])
def test_t5_gives_diffusers_ids(cases, official, kind):
    found = different(cases, official[kind], "diffusers", lambda case: case["t5_256"])
    assert found == DIFFUSERS_T5_DIFFERENCES


def test_reference_exact_gives_the_ids_of_the_reference_code(cases, official):
    for name in ("l", "g"):
        assert not different(
            cases, official[name], "reference-exact", lambda case, n=name: case["official"][n][0]
        )
    for name in ("t5", "spiece"):
        assert not different(cases, official[name], "reference-exact", lambda case: case["official"]["t5"][0])


def test_spiece_model_gives_the_ids_of_tokenizer_json(official):
    for text in (
        "two  spaces ",
        " a <extra_id_5>  b",
        "x<extra_id_99>y </s>",
        "ｆｕｌｌ　ｗｉｄｔｈ ﬁ ½",
        "<pad> <unk>",
    ):
        assert official["spiece"](text).ids == official["t5"](text).ids


@pytest.mark.parametrize("policy", POLICIES)
def test_spans_lead_back_to_the_prompt(cases, official, policy):
    for case in cases:
        for name in ("l", "t5"):
            tokens, cut = official[name](case["text"], policy)
            spans = [token.span for token in tokens if token.span is not None]
            assert [start for start, _ in spans] == sorted(start for start, _ in spans), case["id"]
            assert all(0 <= start <= end <= len(case["text"]) for start, end in spans)
            assert cut is None or cut[1] == len(case["text"])
    prompt = "a photo, of (two cats:1.2) & a café"
    spelled = {token.piece.strip("▁</w>"): token.span for token in official["l"](prompt, policy).tokens}
    for word in ("photo", "two", "cats"):
        start, end = spelled[word]
        assert prompt[start:end] == word


def test_ten_thousand_characters(official):
    prompt = "A wonderfully long prompt, " * 371
    prompt = prompt[:10_000]
    for policy in POLICIES:
        tokens, cut = official["l"](prompt, policy)
        assert len(tokens) == 77
        last = max(token.span[1] for token in tokens if token.span)
        assert prompt[last:].strip() == prompt[cut[0] :].strip()
    assert official["t5"](prompt).cut is None
    assert len(official["t5"](prompt).tokens) > 1000
    assert len(official["t5"](prompt, "diffusers").tokens) == 256
    assert official["t5"](prompt, "reference-exact").cut == (226, 10_000)


def test_small_clip(tokenizer_l, tokenizer_g):
    vocab = tokenizer_l.tokenizer.get_vocab()
    tokens = tokenizer_l("A  Red CAT!").tokens
    pieces = ["<|startoftext|>", "a</w>", "red</w>", "cat</w>", "!</w>", "<|endoftext|>"]
    assert [token.piece for token in tokens[:6]] == pieces
    assert [token.span for token in tokens[:6]] == [None, (0, 1), (3, 6), (7, 10), (10, 11), None]
    assert [token.kind for token in tokens[:7]] == ["start", "text", "text", "text", "text", "end", "pad"]
    assert {token.id for token in tokens[6:]} == {vocab["<|endoftext|>"]}
    assert {token.id for token in tokenizer_g("A red cat").tokens[6:]} == {0}
    assert len(tokens) == 77


def test_small_t5(tokenizer_t5):
    tokens = tokenizer_t5("cat dog").tokens
    assert [token.piece for token in tokens[:4]] == ["▁cat", "▁dog", "</s>", "<pad>"]
    assert [token.kind for token in tokens[:4]] == ["text", "text", "end", "pad"]
    assert len(tokens) == 77
    assert len(tokenizer_t5("dog " * 100).tokens) == 101 + 1  # a last space is a piece here; no cap
    short = tokenizer_t5("dog " * 400, "diffusers")
    assert len(short.tokens) == 256
    assert short.tokens[-1].kind == "end"
    assert short.cut == (1019, 1600)  # from the space before the 256th dog


def test_empty_prompt(tokenizer_l, tokenizer_g, tokenizer_t5):
    assert tokenizer_l("").ids == [tokenizer_l.start.id] + [tokenizer_l.end.id] * 76
    assert tokenizer_g("").ids == [tokenizer_g.start.id, tokenizer_g.end.id] + [0] * 75
    for policy, length in (("reference", 77), ("diffusers", 256), ("reference-exact", 77)):
        assert tokenizer_t5("", policy).ids == [1] + [0] * (length - 1)
        assert tokenizer_t5("", policy).cut is None


def test_control_characters(tokenizer_l, tokenizer_t5):
    for policy in POLICIES:
        assert len(tokenizer_l("cat\x00\x1b[31m\x7f\r\n\tdog\u200b", policy).tokens) == 77
        assert len(tokenizer_t5("cat\x00\x1b[31m\x7f\r\n\tdog\u200b", policy).tokens) >= 77


def test_own_policy(tokenizer_t5):
    policy = PromptPolicy("long", t5_min=512, t5_max=512)
    assert len(tokenizer_t5("cat", policy).tokens) == 512


def test_texts_and_policies_that_do_not_exist(tokenizer_l, tokenizer_t5):
    for tokenizer in (tokenizer_l, tokenizer_t5):
        with pytest.raises(ValueError, match="character 1 of the prompt is half of a surrogate pair"):
            tokenizer("a\ud83d")
        with pytest.raises(ValueError, match="must be a string, got int"):
            tokenizer(3)
        with pytest.raises(ValueError, match="choose one of reference, diffusers, reference-exact"):
            tokenizer("a", "longest")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a b  c\nd", ["a", "b", "c", "d"]),
        ("tab\there", ["tab\there"]),
        ("(cat:1.3) (dog)", ["cat", "dog"]),
        ("((a:1.5) b)", ["a", "b"]),
        ("(a:b)", ["a:b"]),
        ("(:1.2)", [":1.2"]),
        (r"\(a\) (b\))", ["(a)", "b)"]),
        ("open (paren", ["open", "(paren"]),
        ("stray) here (a:2)", ["stray)", "here", "(a:2)"]),
        ("()", []),
        ("", []),
    ],
)
def test_words_of_the_reference_code(prompt, expected):
    found = list(words(prompt))
    assert ["".join(char.char for char in word) for word in found] == expected
    for word in found:
        assert "".join(prompt[char.start : char.end] for char in word).replace("\\", "") == "".join(
            char.char for char in word
        )


@pytest.mark.parametrize("depth", [1, 1000])
def test_parentheses_may_be_nested_deeply(depth):
    text = "(" * depth + "a:1.3)" + " b)" * (depth - 1) + " c"
    found = ["".join(char.char for char in word) for word in words(text)]
    assert found == ["a", *"b" * (depth - 1), "c"]
    assert [len(word) for word in words("(" * depth + "a")] == [depth + 1]


def test_window_is_filled_by_whole_words():
    small, large = ["t"] * 3, ["t"] * 8
    assert fill_window([small, small], 7) == 6
    assert fill_window([small, small, small], 7) == 6
    assert fill_window([small, large], 7) == 7
    assert fill_window([], 7) == 0


def test_sentencepiece_equals_tokenizer_json(shared_reference):
    folder = shared_reference / "tokenizers" / "t5"
    model = read_sentencepiece(folder / "spiece.model")
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert [piece for piece, _ in model.pieces] == [piece for piece, _ in vocab[: len(model.pieces)]]
    assert max(abs(a[1] - b[1]) for a, b in zip(model.pieces, vocab, strict=False)) < 1e-5
    assert model.unk_id == 2
    assert model.specials == ["<pad>", "</s>", "<unk>"]


def field(number, value):
    """A protocol buffer field: an int, or bytes shorter than 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def spiece(pieces, *, model_type=1):
    packed = b""
    for text, score, kind in pieces:
        fields = field(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", score) + field(3, kind)
        packed += field(1, fields)
    return packed + field(2, field(3, model_type)) + field(3, field(1, b"identity"))


PIECES = [("<pad>", 0, 3), ("</s>", 0, 3), ("<unk>", 0, 2), ("▁cat", -1.5, 1), ("▁", -2, 1), ("s", -3, 1)]


def test_small_sentencepiece(tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece(PIECES))
    tokenizer = T5Tokenizer.load(tmp_path)
    pieces = [token.piece for token in tokenizer("cats  <extra_id_0> é ").tokens]
    assert pieces[:6] == ["▁cat", "s", "<extra_id_0>", "▁", "<unk>", "</s>"]
    assert tokenizer.tokenizer.token_to_id("<extra_id_0>") == len(PIECES) + 99


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no pieces"),
        (b"<html>nothing here</html>", "not a readable sentencepiece model"),
        (spiece(PIECES)[:20], "ends within"),
        (spiece(PIECES, model_type=2), "of another kind than T5's"),
    ],
)
def test_damaged_sentencepiece(tmp_path, content, message):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(VocabularyError, match=message):
        T5Tokenizer.load(tmp_path)


def test_clip_from_tokenizer_json_is_the_same(tmp_path, tokenizer_l):
    tokenizer_l.tokenizer.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = CLIPTokenizer.load(path, pad_with_end=True)
        assert again("A red cat, 3 dogs' café").tokens == tokenizer_l("A red cat, 3 dogs' café").tokens


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "", "vocab.json is not readable JSON"),
        ("vocab.json", "[1, 2]", "should map each symbol to its id"),
        ("vocab.json", '{"a": "b"}', "should map each symbol to its id"),
        ("vocab.json", '{"a": 0}', "does not fit vocab.json"),
        ("merges.txt", "#version: 0.2\na b c\n", "line 2: expected two symbols, got 'a b c'"),
        ("merges.txt", "no such\n", "does not fit vocab.json"),
    ],
)
def test_damaged_clip_vocabulary(tmp_path, vocabularies, name, content, message):
    shutil.copytree(vocabularies / "clip", tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(VocabularyError, match=message):
        CLIPTokenizer.load(tmp_path, pad_with_end=True)


def test_missing_and_foreign_vocabularies(tmp_path, vocabularies):
    with pytest.raises(VocabularyError, match=r"expected a folder with vocab\.json and merges\.txt"):
        CLIPTokenizer.load(tmp_path, pad_with_end=True)
    with pytest.raises(VocabularyError, match=r"tokenizer\.json or spiece\.model"):
        T5Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(VocabularyError, match=r"no <\|startoftext\|>"):
        CLIPTokenizer.load(vocabularies / "t5", pad_with_end=True)
    (tmp_path / "tokenizer.json").write_text("<html></html>")
    with pytest.raises(VocabularyError, match=r"not a readable tokenizer\.json"):
        T5Tokenizer.load(tmp_path)


def test_a_vocabulary_that_goes_on_after_the_end_token(tokenizer_l):
    extended = Tokenizer.from_str(tokenizer_l.tokenizer.to_str())
    extended.add_tokens(["<my-style>"])
    with pytest.raises(VocabularyError, match="must not be extended"):
        CLIPTokenizer(extended, pad_with_end=True)
