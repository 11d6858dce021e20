"""Prompt encoding: assembly, missing encoders, notes, records, and encodings that are kept."""

import gc
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from textenc import CLIPOutput, Encoding, Prompt, TextEncoder, Widths, assemble
from textenc.prompt import as_prompts

PROMPTS = ["a red cat", "a dog"]


@pytest.fixture
def text(clip_l, clip_g, t5, tokenizer_l, tokenizer_g, tokenizer_t5):
    return TextEncoder(
        clip_l=clip_l,
        clip_g=clip_g,
        t5=t5,
        tokenizer_l=tokenizer_l,
        tokenizer_g=tokenizer_g,
        tokenizer_t5=tokenizer_t5,
        widths=Widths(clip_l=8, clip_g=12, context=24),
    )


def without(text, *names):
    parts = {"clip_l", "clip_g", "t5"} - set(names)
    tokenizers = {name: getattr(text, name) for name in ("tokenizer_l", "tokenizer_g", "tokenizer_t5")}
    return TextEncoder(**{name: getattr(text, name) for name in parts}, **tokenizers, widths=text.widths)


def test_context_and_pooled_are_assembled_as_in_the_paper(text):
    encoding = text.encode(PROMPTS)
    ids = {name: torch.tensor([one.ids for one in tokens]) for name, tokens in text.tokenize(PROMPTS).items()}
    clip_l, clip_g, t5 = text.clip_l(ids["clip_l"]), text.clip_g(ids["clip_g"]), text.t5(ids["t5"])
    assert encoding.context.shape == (2, 154, 24)
    assert encoding.pooled.shape == (2, 20)
    assert torch.equal(encoding.context[:, :77, :8], clip_l.penultimate)
    assert torch.equal(encoding.context[:, :77, 8:20], clip_g.penultimate)
    assert not encoding.context[:, :77, 20:].any()
    assert torch.equal(encoding.context[:, 77:], t5)
    assert torch.equal(encoding.pooled, torch.cat([clip_l.pooled, clip_g.pooled], dim=-1))
    assert not encoding.notes


def test_assemble_keeps_gradients_and_refuses_wide_clips():
    parts = [torch.randn(1, 3, width, requires_grad=True) for width in (2, 3, 5)]
    clips = [CLIPOutput(part, part, part[:, 0]) for part in parts[:2]]
    context, pooled = assemble(*clips, parts[2])
    (context.sum() + pooled.sum()).backward()
    assert all(part.grad is not None for part in parts)
    with pytest.raises(ValueError, match="CLIP's 5 features do not fit into a context of width 4"):
        assemble(*clips, parts[2][..., :4])


@pytest.mark.parametrize(
    ("policy", "length"), [("reference", 77), ("diffusers", 256), ("reference-exact", 77)]
)
def test_policies_set_the_length(text, policy, length):
    encoding = text.encode("a red cat", policy=policy)
    assert encoding.context.shape == (1, 77 + length, 24)
    assert encoding.policy == policy
    empty = without(text, "t5").encode("a red cat", policy=policy)
    assert empty.context.shape == (1, 77 + length, 24)
    assert torch.equal(empty.context[:, :77], encoding.context[:, :77])
    assert not empty.context[:, 77:].any()


def test_a_batch_equals_its_prompts_alone(text):
    both = text.encode(PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        alone = text.encode(prompt)
        torch.testing.assert_close(both.select(index).context, alone.context, rtol=0, atol=1e-5)
        assert both.select(index).tokens == alone.tokens
    joined = Encoding.cat([text.encode(prompt) for prompt in PROMPTS])
    torch.testing.assert_close(joined.context, both.context, rtol=0, atol=1e-5)
    assert (joined.prompts, joined.tokens, joined.notes) == (both.prompts, both.tokens, both.notes)


def test_missing_clip_is_zeros(text):
    full = text.encode(PROMPTS)
    no_l, no_g = without(text, "clip_l").encode(PROMPTS), without(text, "clip_g").encode(PROMPTS)
    for encoding, kept, gone in ((no_l, slice(8, 20), slice(0, 8)), (no_g, slice(0, 8), slice(8, 20))):
        assert torch.equal(encoding.context[:, :77, kept], full.context[:, :77, kept])
        assert torch.equal(encoding.pooled[:, kept], full.pooled[:, kept])
        assert not encoding.context[:, :77, gone].any()
        assert not encoding.pooled[:, gone].any()


def test_missing_encoders_dropped(text):
    full = text.encode(PROMPTS)
    no_t5 = without(text, "t5").encode(PROMPTS, missing="drop")
    assert torch.equal(no_t5.context, full.context[:, :77])
    only_t5 = without(text, "clip_l", "clip_g").encode(PROMPTS, missing="drop")
    assert torch.equal(only_t5.context, full.context[:, 77:])
    assert only_t5.pooled.shape == (2, 20)
    assert not only_t5.pooled.any()
    assert [token.position for token in only_t5.tokens[0]] == list(range(77))


def test_one_prompt_per_encoder(text):
    encoding = text.encode({"text": "a dog", "t5": "a red cat"})
    cat, dog = text.encode("a red cat"), text.encode("a dog")
    assert torch.equal(encoding.context[:, :77], dog.context[:, :77])
    assert torch.equal(encoding.context[:, 77:], cat.context[:, 77:])
    assert torch.equal(encoding.pooled, dog.pooled)
    assert encoding.prompts == (Prompt("a dog", t5="a red cat"),)
    assert torch.equal(
        text.encode(Prompt("x", clip_l="", t5="")).context[:, 77:], text.encode("").context[:, 77:]
    )


def test_every_position_has_its_tokens(text):
    encoding = text.encode(PROMPTS)
    prompt, tokens = PROMPTS[0], encoding.tokens[0]
    assert len(tokens) == 77 + 77 + 77
    for name, positions in (("clip_l", range(77)), ("clip_g", range(77)), ("t5", range(77, 154))):
        assert [token.position for token in tokens if token.encoder == name] == list(positions)
    cats = [(t.encoder, t.position) for t in tokens if t.span and prompt[slice(*t.span)].strip() == "cat"]
    assert cats == [("clip_l", 3), ("clip_g", 3), ("t5", next(p for e, p in cats if e == "t5"))]
    ends = {token.encoder: token.position for token in tokens if token.kind == "end"}
    assert (ends["clip_l"], ends["clip_g"]) == (4, 4)


def test_what_was_cut_is_told(text):
    prompt = "cat " * 75 + "dog " * 925  # 4000 characters
    encoding = text.encode(["a dog", prompt])
    notes = {(note.prompt, note.encoder): note for note in encoding.notes}
    assert set(notes) == {(1, "clip_l"), (1, "clip_g"), (0, "t5")}
    assert notes[1, "clip_l"].cut == prompt[300:]
    shown = repr("dog " * 15 + "…")
    expected = f"prompt 1, clip_l: not read, no room left, from character 300 on (3700): {shown}"
    assert str(notes[1, "clip_l"]) == expected
    longest = encoding.context.shape[1] - 77
    assert longest > 1000
    assert str(notes[0, "t5"]) == f"prompt 0, t5: padded from 77 to {longest} tokens, the batch's longest"

    alone = text.encode(prompt, policy="diffusers").notes
    assert [note.encoder for note in alone] == ["clip_l", "clip_g", "t5"]
    assert alone[2].cut.strip() == prompt[255 * 4 :].strip()
    assert text.encode(["a dog", prompt]).select(1).notes[0].prompt == 0


def test_empty_prompts_and_control_characters(text):
    for prompt in ("", " ", "\x00\x1b[0m\r\n\t\x7f\u200b\u2028"):
        encoding = text.encode(prompt)
        assert encoding.context.isfinite().all()
        assert encoding.context.shape == (1, 154, 24)


def test_encoders_are_loaded_used_and_freed_one_by_one(text, clip_l, clip_g, t5):
    alive = []

    def loader(module):
        def load():
            gc.collect()
            assert not [ref for ref in alive if ref() is not None], "the encoder before is still there"
            copy = type(module)(module.config)
            copy.load_state_dict(module.state_dict())
            alive.append(weakref.ref(copy))
            return copy.requires_grad_(False)

        return load

    tokenizers = {name: getattr(text, name) for name in ("tokenizer_l", "tokenizer_g", "tokenizer_t5")}
    lazy = TextEncoder(clip_l=loader(clip_l), clip_g=loader(clip_g), t5=loader(t5), **tokenizers)
    assert torch.equal(lazy.encode(PROMPTS).context, text.encode(PROMPTS).context)
    gc.collect()
    assert [ref() for ref in alive] == [None, None, None]
    assert lazy.tokenize(PROMPTS) == text.tokenize(PROMPTS)
    assert len(alive) == 3


def test_encodings_are_saved_and_reused(text, tmp_path):
    encoding = text.encode(["a red cat", {"text": "dog " * 200, "clip_l": "é\x00"}])
    assert encoding.notes
    tensors, metadata = encoding.to_tensors()
    save_file(tensors, tmp_path / "encoding.safetensors", metadata)
    again = Encoding.from_tensors(load_file(tmp_path / "encoding.safetensors"), metadata)
    assert torch.equal(again.context, encoding.context)
    assert torch.equal(again.pooled, encoding.pooled)
    for name in ("prompts", "tokens", "notes", "policy"):
        assert getattr(again, name) == getattr(encoding, name)


def test_damaged_encodings_are_refused(text):
    tensors, metadata = text.encode(PROMPTS).to_tensors()
    with pytest.raises(ValueError, match="got the format None"):
        Encoding.from_tensors(tensors, {})
    for bad in (
        {**metadata, "encoding": "{"},
        {**metadata, "encoding": "{}"},
        {**metadata, "encoding": "[]"},
    ):
        with pytest.raises(ValueError, match="is damaged"):
            Encoding.from_tensors(tensors, bad)
    with pytest.raises(ValueError, match="is damaged"):
        Encoding.from_tensors({"context": tensors["context"]}, metadata)
    with pytest.raises(ValueError, match="1 contexts, 2 pooled vectors"):
        Encoding.from_tensors(tensors | {"context": tensors["context"][:1]}, metadata)


def test_encodings_move_and_join(text):
    encoding = text.encode(PROMPTS)
    half = encoding.to(dtype=torch.bfloat16)
    assert (half.context.dtype, half.pooled.dtype) == (torch.bfloat16, torch.bfloat16)
    assert encoding.to("cpu").context is encoding.context
    with pytest.raises(IndexError):
        encoding.select(2)
    with pytest.raises(ValueError, match="at least one encoding"):
        Encoding.cat([])
    with pytest.raises(ValueError, match=r"encodings of \[154, 333\] tokens"):
        Encoding.cat([encoding, text.encode("a", policy="diffusers")])


def test_mixed_precision_keeps_the_wider(text, t5):
    t5.to(torch.bfloat16)
    assert text.encode("a red cat").context.dtype == torch.float32


def test_what_cannot_be_encoded_is_refused(text, clip_l, tokenizer_l):
    with pytest.raises(ValueError, match="at least one prompt"):
        text.encode([])
    with pytest.raises(ValueError, match="must be a string, got NoneType"):
        text.encode([None])
    with pytest.raises(ValueError, match="a prompt has text, clip_l, clip_g and t5, not negative"):
        text.encode({"text": "a", "negative": "b"})
    with pytest.raises(ValueError, match="no prompt policy 'long'"):
        text.encode("a", policy="long")
    with pytest.raises(ValueError, match="missing must be 'zeros' or 'drop'"):
        text.encode("a", missing="ones")
    with pytest.raises(ValueError, match="clip_l came without its tokenizer"):
        TextEncoder(clip_l=clip_l)
    with pytest.raises(ValueError, match="at least one of"):
        TextEncoder(tokenizer_l=tokenizer_l)


def test_a_tokenizer_of_another_encoder_is_reported(text, clip_l):
    clip_l.config.__dict__["vocab_size"] = 100
    with pytest.raises(ValueError, match="the tokenizer belongs to another encoder"):
        text.encode("a red cat")


def test_forms_of_a_prompt():
    same = [as_prompts("a"), as_prompts(["a"]), as_prompts(Prompt("a")), as_prompts({"text": "a"})]
    assert all(prompts == (Prompt("a"),) for prompts in same)
    assert [Prompt("a", clip_g="b").of(name) for name in ("clip_l", "clip_g", "t5")] == ["a", "b", "a"]
    assert as_prompts({"text": "a", "t5": None}) == (Prompt("a"),)


@pytest.mark.parametrize("prompt", [{"text": None}, {"text": 3}, {"t5": 3}, None, 3, ["a", None]])
def test_what_is_no_text_is_refused(prompt):
    with pytest.raises(ValueError, match=r"a prompt must be a string, got (NoneType|int)"):
        as_prompts(prompt if isinstance(prompt, list) else [prompt])
    if isinstance(prompt, dict):
        with pytest.raises(ValueError, match="a prompt must be a string"):
            Prompt(**prompt)
