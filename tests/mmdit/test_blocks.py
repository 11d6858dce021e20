import math

import pytest
import torch
from torch import Tensor, nn

from mmdit.blocks import AdaLN, JointBlock, Mlp, Norm, QKNorm, attention, modulate

DIM, HEADS = 64, 2
KINDS = {"plain": {}, "dual": {"dual": True}, "last": {"last": True}}


@pytest.fixture(params=KINDS)
def kind(request) -> dict[str, bool]:
    return KINDS[request.param]


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor, Tensor]:
    """Six image tokens, four of context, and a conditioning vector, for a batch of two."""
    generator = torch.Generator().manual_seed(2)
    shapes = ((2, 6, DIM), (2, 4, DIM), (2, DIM))
    x, context, c = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, context, c


def joint_block(drawn, *, qk_norm: bool = True, **kind: bool) -> JointBlock:
    return drawn(JointBlock(DIM, HEADS, qk_norm=qk_norm, **kind)).double()


def test_shapes(kind, tokens, drawn):
    x, context = joint_block(drawn, **kind)(*tokens)
    assert x.shape == (2, 6, DIM)
    assert context is None if kind.get("last") else context.shape == (2, 4, DIM)


def test_keys_of_the_three_kinds():
    def keys(qk_norm: bool = True, **kind: bool) -> set[str]:
        return {
            name.removesuffix(".weight")
            for name in JointBlock(DIM, HEADS, qk_norm=qk_norm, **kind).state_dict()
            if not name.endswith(".bias")
        }

    linear = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"}
    norms = {"attn.ln_q", "attn.ln_k"}
    plain = {f"{stream}.{name}" for stream in ("x_block", "context_block") for name in linear | norms}
    assert keys() == plain
    assert keys(qk_norm=False) == {f"{s}.{name}" for s in ("x_block", "context_block") for name in linear}
    second = {f"x_block.attn2.{name}" for name in ("qkv", "proj", "ln_q", "ln_k")}
    assert keys(dual=True) == plain | second
    unwritten = {f"context_block.{name}" for name in ("attn.proj", "mlp.fc1", "mlp.fc2")}
    assert keys(last=True) == plain - unwritten


def test_vectors_of_the_three_kinds(kind):
    block = JointBlock(DIM, HEADS, qk_norm=True, **kind)
    vectors = [stream.adaLN_modulation.n for stream in (block.x_block, block.context_block)]
    assert vectors == {"": [6, 6], "dual": [9, 6], "last": [6, 2]}["".join(kind)]


def test_no_modulation_is_the_identity(kind, tokens, drawn):
    """What training starts from: all gates are shut."""
    block = joint_block(drawn, **kind)
    for stream in (block.x_block, block.context_block):
        nn.init.zeros_(stream.adaLN_modulation[1].weight)
        nn.init.zeros_(stream.adaLN_modulation[1].bias)
    x, context = block(*tokens)
    assert torch.equal(x, tokens[0])
    assert context is None or torch.equal(context, tokens[1])


def test_block_is_its_formula(kind, tokens, drawn):
    """The layer once more, written out by hand in float64 with its vectors by number."""
    block = joint_block(drawn, **kind)
    x, context, c = tokens
    image, text = block.x_block, block.context_block
    m, n = (
        (nn.functional.silu(c) @ s.adaLN_modulation[1].weight.T + s.adaLN_modulation[1].bias)[:, None].split(
            DIM, dim=-1
        )
        for s in (image, text)
    )

    def normed(y: Tensor) -> Tensor:
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    def rms(y: Tensor, norm: QKNorm) -> Tensor:
        return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    def heads(attn, y: Tensor) -> list[Tensor]:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (y @ attn.qkv.weight.T + attn.qkv.bias).chunk(3, dim=-1)
        )
        return [rms(q, attn.ln_q), rms(k, attn.ln_k), v]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.transpose(-1, -2) / math.sqrt(DIM // HEADS)).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    mine = heads(image.attn, normed(x) * (1 + m[1]) + m[0])
    theirs = heads(text.attn, normed(context) * (1 + n[1]) + n[0])
    both = attend(*(torch.cat([b, a], dim=2) for a, b in zip(mine, theirs, strict=True)))
    y = x + m[2] * image.attn.proj(both[:, 4:])
    if block.dual:
        second = heads(image.attn2, normed(x) * (1 + m[7]) + m[6])
        y = y + m[8] * image.attn2.proj(attend(*second))
    y = y + m[5] * image.mlp(normed(y) * (1 + m[4]) + m[3])
    actual, actual_context = block(x, context, c)
    torch.testing.assert_close(actual, y, rtol=1e-11, atol=1e-11)
    if not block.last:
        z = context + n[2] * text.attn.proj(both[:, :4])
        z = z + n[5] * text.mlp(normed(z) * (1 + n[4]) + n[3])
        torch.testing.assert_close(actual_context, z, rtol=1e-11, atol=1e-11)


def test_attention_sees_the_context_first(tokens, drawn):
    block = joint_block(drawn)
    seen: list[Tensor] = []
    block.attention.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs))
    block(*tokens)
    shift, scale, *_ = block.context_block.adaLN_modulation(tokens[2])
    context = block.context_block.attn.heads(modulate(block.context_block.norm1(tokens[1]), shift, scale))
    for whole, part in zip(seen, context, strict=True):
        torch.testing.assert_close(whole[:, :, :4], part, rtol=1e-12, atol=1e-12)


def test_second_attention_sees_no_context(tokens, drawn):
    block = joint_block(drawn, dual=True)
    outputs: list[Tensor] = []
    block.x_block.attn2.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    x, context, c = tokens
    results = [block(x, each, c)[0] for each in (context, context + 1, context[:, :1])]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(results[0], results[2])


def test_last_block_throws_the_context_query_away(tokens, drawn):
    block = joint_block(drawn, last=True)
    before, _ = block(*tokens)
    block.context_block.attn.qkv.weight[:DIM] = 0
    after, _ = block(*tokens)
    torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-12)


def test_padding_takes_part(tokens, drawn):
    """There is no mask: zeros appended to the context change the image."""
    block = joint_block(drawn)
    x, context, c = tokens
    padded = torch.cat([context, torch.zeros(2, 3, DIM, dtype=torch.float64)], dim=1)
    assert (block(x, context, c)[0] - block(x, padded, c)[0]).abs().max() > 1e-3


def test_adaln_gives_its_vectors_in_order():
    modulation = AdaLN(4, 3)
    nn.init.zeros_(modulation[1].weight)
    modulation[1].bias.copy_(torch.arange(12.0))
    vectors = modulation(torch.ones(2, 4))
    assert [vector.shape for vector in vectors] == [(2, 1, 4)] * 3
    assert [vector[0, 0].tolist() for vector in vectors] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_norm_has_no_weights_and_unit_variance():
    norm = Norm()
    assert not list(norm.parameters())
    y = norm(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]], dtype=torch.float64))
    assert y.mean().item() == pytest.approx(0, abs=1e-12)
    assert y.square().mean().item() == pytest.approx(1, rel=1e-6)


def test_mlp_uses_the_tanh_gelu(drawn):
    mlp = drawn(Mlp(8)).double()
    x = torch.linspace(-3, 3, 16, dtype=torch.float64).view(1, 2, 8)
    hidden = mlp.fc1(x)
    cubic = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
    expected = mlp.fc2(0.5 * hidden * (1 + cubic.tanh()))
    torch.testing.assert_close(mlp(x), expected, rtol=1e-12, atol=1e-12)


def test_attention_is_its_formula():
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    expected = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 12)
    torch.testing.assert_close(attention(q, k, v), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [300.0, 6e4])
def test_qk_norm_survives_large_values_in_float16(size):
    """The square of 256 overflows float16."""
    heads = (size * torch.linspace(-1, 1, 64)).half().view(1, 1, 1, 64)
    y = QKNorm(64).half()(heads)
    torch.testing.assert_close(y, QKNorm(64)(heads.float()).half(), rtol=2e-3, atol=0)
    assert y.abs().max() > 1


def test_qk_norm_is_that_of_the_original(tables):
    norm = QKNorm(64)
    norm.weight.copy_(tables["rmsnorm/weight"])
    for stem in ("x", "x_small"):
        expected = tables["rmsnorm/official_fp32" if stem == "x" else "rmsnorm/official_small_fp32"]
        heads = tables[f"rmsnorm/{stem}"][None, None]
        torch.testing.assert_close(norm(heads)[0, 0], expected, rtol=2e-6, atol=0)


def test_qk_norm_where_the_original_overflows(tables):
    """In float16 the original answers large values with zeros; diffusers, with the right numbers."""
    norm = QKNorm(64)
    norm.weight.copy_(tables["rmsnorm/weight"])
    y = norm.half()(tables["rmsnorm/x_big_fp16"][None, None])[0, 0]
    assert not tables["rmsnorm/official_fp16_big_result(overflows)"].any()
    torch.testing.assert_close(y, tables["ref_diffusers/rmsnorm_fp16_big_result"], rtol=2e-3, atol=1e-6)
