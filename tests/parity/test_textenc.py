"""Token ids, text encoders and the assembled encoding, against transformers and the original implementation.

Transformers' T5LayerNorm takes its mean square in float32 in every run; the float64 activations of T5
stored here were made with that lifted, and the original's never had it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sd35.verify.rounding import rounding_reach
from textenc import CLIP, T5, CLIPConfig, CLIPTokenizer, T5Config, T5Tokenizer, TextEncoder
from textenc.t5 import relative_bucket

TOKENIZERS = Path(__file__).parent / "tokenizers"
CLIPS = {"clip_l": "quick_gelu", "clip_g": "gelu"}


def build_clip(
    weights: Mapping[str, Tensor], activation, num_heads: int, dtype: torch.dtype = torch.float32
) -> CLIP:
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    model = CLIP(CLIPConfig.from_shapes(shapes, activation=activation, num_heads=num_heads))
    model.load_state_dict(weights)
    return model.to(dtype).eval()


def build_t5(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> T5:
    model = T5(T5Config.from_shapes({name: tensor.shape for name, tensor in weights.items()}))
    model.load_state_dict(weights)
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, float]]:
    """The limits in float32, by test: they are the same on every processor."""
    return {}


@pytest.fixture
def within(request: pytest.FixtureRequest, known, tapped, agree) -> Callable[..., None]:
    """Check the stages of an encoder: to 1e-12 in float64, and in float32 to what its sums round to."""

    def check(
        model: nn.Module,
        dtype: torch.dtype,
        paths: Mapping[str, str],
        outputs: Callable[[], dict[str, Tensor]],
        expected: Mapping[str, Tensor],
    ) -> None:
        def run() -> dict[str, Tensor]:
            with tapped(model, paths.values()) as stages:
                given = outputs()
            return {stage: stages[path] for stage, path in paths.items()} | given

        model.double()
        limits = dict.fromkeys(expected, 1e-12)
        if dtype == torch.float32:
            test = f"{request.node.originalname} {request.node.callspec.params.get('name')} {[*expected]}"
            limits = known.get(test) or rounding_reach(run)
            known[test] = limits
            assert max(limits.values()) < 2e-5
            model.float()
        actual = run()
        for stage in expected:
            agree({stage: actual[stage]}, {stage: expected[stage]}, limits[stage])

    return check


@pytest.mark.parametrize("name", CLIPS)
def test_every_clip_layer_as_in_transformers(name: str, reference, dtype, within) -> None:
    file = reference(name)
    model, stages = build_clip(file.weights(), CLIPS[name], 2), file.under("act64/")
    assert len(stages) == 1 + model.config.depth
    outputs = file.under("out64/" if dtype == torch.float64 else "out/")
    within(
        model,
        dtype,
        {path: path for path in stages},
        lambda: model(file["in/ids"])._asdict(),
        stages | outputs,
    )


def test_every_t5_block_as_in_transformers(reference, dtype, within) -> None:
    file = reference("t5")
    model, stages = build_t5(file.weights()), file.under("act64/")
    assert len(stages) == 1 + model.config.depth
    outputs = file.under("out64/" if dtype == torch.float64 else "out/")
    within(
        model,
        dtype,
        {path: path for path in stages},
        lambda: {"last": model(file["in/ids"])},
        stages | outputs,
    )


def test_float32_statistics(reference, error) -> None:
    """Transformers as it is departs from float64 through T5's statistics alone; ours does not."""
    file = reference("t5")
    left_in = error(file["out64_float32_statistics/last"], file["out64/last"])
    ours = error(build_t5(file.weights(), torch.float64)(file["in/ids"]), file["out64/last"])
    assert 1e-9 < left_in < 1e-5
    assert ours < 1e-4 * left_in


@pytest.mark.parametrize("name", CLIPS)
def test_every_clip_layer_as_in_the_original(name: str, golden, dtype, within) -> None:
    file = golden(f"{name}_like")
    config = file.config
    model = build_clip(file.weights(), config["hidden_act"], config["num_attention_heads"])
    paths = {"embeddings": "text_model.embeddings"}
    paths |= {f"layer{i}": f"text_model.encoder.layers.{i}" for i in range(config["num_hidden_layers"])}
    pooled = "pooled_projected" if config["text_projection_in_file"] else "pooled_unprojected"
    names = {"penultimate": "penultimate_no_final_norm", "pooled": pooled, "last": "last_hidden_state_normed"}

    def outputs() -> dict[str, Tensor]:
        output = model(file["in/input_ids"])._asdict()
        return {theirs: output[ours] for ours, theirs in names.items()}

    if dtype == torch.float64:
        expected = {stage: file[f"out64/{stage}"] for stage in (names["penultimate"], pooled)}
    else:
        expected = file.under("act/") | {stage: file[f"out/{stage}"] for stage in names.values()}
    within(
        model,
        dtype,
        paths,
        outputs,
        {stage: y for stage, y in expected.items() if stage in {*paths, *names.values()}},
    )


def test_every_t5_block_as_in_the_original(golden, dtype, within) -> None:
    file = golden("t5_like")
    model = build_t5(file.weights())
    paths = {"embeddings": "shared"} | {
        f"block{i}": f"encoder.block.{i}" for i in range(file.config["num_layers"])
    }
    short, long = ({"last_hidden_state_" + n: file["in/input_ids_" + n]} for n in ("77", "long"))

    def outputs(ids: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        return lambda: {name: model(one) for name, one in ids.items()}

    kind = "64" if dtype == torch.float64 else ""
    expected = {name: file[f"out{kind}/{name}"] for name in (*short, *long)}
    within(model, dtype, {}, outputs(long | short), expected)
    if dtype == torch.float32:
        within(model, dtype, paths, outputs(short), {stage: file[f"act/{stage}"] for stage in paths})
        bias = model.encoder.block[0].layer[0].SelfAttention.position_bias(77)
        assert torch.equal(bias, file["act/position_bias_block0"])


def test_buckets_of_the_original(golden) -> None:
    file = golden("t5_like")
    assert torch.equal(
        relative_bucket(file["act/relative_position"], num_buckets=32), file["act/relative_bucket"]
    )


@pytest.fixture(scope="module")
def encoder(reference) -> TextEncoder:
    clip_l, clip_g = (
        build_clip(reference(name).weights(), activation, 2) for name, activation in CLIPS.items()
    )
    return TextEncoder(
        clip_l=clip_l,
        clip_g=clip_g,
        t5=build_t5(reference("t5").weights()),
        tokenizer_l=CLIPTokenizer.load(TOKENIZERS / "clip", pad_with_end=True),
        tokenizer_g=CLIPTokenizer.load(TOKENIZERS / "clip", pad_with_end=False),
        tokenizer_t5=T5Tokenizer.load(TOKENIZERS / "t5"),
    )


def test_ids_as_in_diffusers(encoder: TextEncoder, reference) -> None:
    """A prompt, none, and one that overflows both CLIP's window and T5's 256."""
    file = reference("trajectory")
    tokens = encoder.tokenize(file.config["prompts"], policy="diffusers")
    for name, expected in file.under("ids/").items():
        assert [one.ids for one in tokens[name]] == expected.tolist(), name
    assert all(one.cut is not None for one in (tokens[name][2] for name in tokens))


def test_encoding_as_in_diffusers(encoder: TextEncoder, reference, agree) -> None:
    """The policy by the name of diffusers: context of 77 + 256 tokens, pads read like text."""
    file = reference("trajectory")
    encoding = encoder.encode(file.config["prompts"], policy="diffusers")
    assert encoding.context.shape == (3, 77 + 256, 64)
    agree(
        {"context": encoding.context[:2], "pooled": encoding.pooled},
        {name: file[f"out/{name}"] for name in ("context", "pooled")},
        2e-6,
    )


def test_encoding_as_the_original_assembles_it(encoder: TextEncoder, reference, error) -> None:
    """The policy by the name of the original: T5 of 77 tokens, so other numbers for the same prompt."""
    file = reference("trajectory")
    prompt = file.config["prompts"][0]
    ours = encoder.encode(prompt, policy="reference")
    assert ours.context.shape == (1, 77 + 77, 64)
    assert error(ours.context[:, :77], file["out/context"][:1, :77]) < 2e-6
    assert error(ours.pooled, file["out/pooled"][:1]) < 2e-6
    assert error(ours.context[:, 77:], file["out/context"][:1, 77:154]) > 1e-2


@pytest.mark.parametrize("name", CLIPS)
def test_mistaken_activation_would_show(name: str, reference, error) -> None:
    file = reference(name)
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[CLIPS[name]]
    output = build_clip(file.weights(), other, 2)(file["in/ids"])
    assert error(output.penultimate, file["out/penultimate"]) > 1e-3


@pytest.mark.parametrize("name", CLIPS)
def test_mistaken_clip_output_would_show(name: str, reference, error) -> None:
    """The last layer in the penultimate's place, and a final norm where there is none."""
    file = reference(name)
    model = build_clip(file.weights(), CLIPS[name], 2)
    output = model(file["in/ids"])
    assert error(output.last, file["out/penultimate"]) > 1e-1
    assert error(model.text_model.final_layer_norm(output.penultimate), file["out/penultimate"]) > 1e-1


def test_mistaken_t5_scale_would_show(reference, error) -> None:
    """Logits divided by √K, as everywhere but in T5."""
    file = reference("t5")
    model = build_t5(file.weights())
    for name, parameter in model.named_parameters():
        if name.endswith("SelfAttention.q.weight"):
            parameter.div_(model.config.head_dim**0.5)
    assert error(model(file["in/ids"]), file["out/last"]) > 1e-2


def test_mistaken_t5_padding_would_show(reference, error) -> None:
    """The prompt without its pads: what masking them would give."""
    file = reference("t5")
    length = int((file["in/ids"] != 0).sum())
    assert length < file["in/ids"].shape[1]
    output = build_t5(file.weights())(file["in/ids"][:, :length])
    assert error(output, file["out/last"][:, :length]) > 1e-2


def test_t5_table_under_either_name(reference) -> None:
    """Official files hold the token table twice, diffusers' folders once."""
    weights = reference("t5").weights()
    both = weights | {"encoder.embed_tokens.weight": weights["shared.weight"]}
    ids = reference("t5")["in/ids"]
    assert torch.equal(build_t5(both)(ids), build_t5(weights)(ids))


def test_projection_of_clip_l_is_the_identity(reference, error) -> None:
    """Diffusers projects CLIP-L's pooled vector and the original does not: one, as W is the identity."""
    file = reference("clip_l")
    weights = file.weights() | {"text_projection.weight": torch.eye(16)}
    projected = build_clip(weights, "quick_gelu", 2)(file["in/ids"]).pooled
    assert error(projected, file["out/pooled"]) < 2e-6


def test_end_token_need_not_be_last(reference, error) -> None:
    """The pooled vector is read at the first of the largest ids, which are also CLIP-L's pads."""
    file = reference("clip_l")
    model = build_clip(file.weights(), "quick_gelu", 2)
    ids = file["in/ids"]
    end = int(ids.argmax())
    assert (ids[0, end:] == ids[0, end]).all()
    assert end < 76
    assert error(model(ids).last[:, end], file["out/pooled"]) < 2e-6
    assert error(model(ids).last[:, -1], file["out/pooled"]) > 1e-2


def test_missing_t5_is_zeros_as_in_diffusers(encoder: TextEncoder, reference, error) -> None:
    file = reference("trajectory")
    prompt = file.config["prompts"][0]
    without = replace(encoder, t5=None, tokenizer_t5=None, widths=replace(encoder.widths, context=64))
    encoding = without.encode(prompt, policy="diffusers")
    assert encoding.context.shape == (1, 77 + 256, 64)
    assert not encoding.context[:, 77:].any()
    assert error(encoding.context[:, :77], file["out/context"][:1, :77]) < 2e-6
