"""What makes the model fast must not be lost, and must not change a result."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmdit import MMDiT, compile_blocks, crop_table, eager_blocks, flops, release_modulation
from mmdit.blocks import JointBlock, Norm, part

DTYPES = (torch.float32, torch.bfloat16)


def strides_into(model: MMDiT, inputs: dict[str, Tensor], kind: type[nn.Module]) -> list[bool]:
    """Whether each tensor that enters each module of a kind is contiguous."""
    seen: list[bool] = []

    def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.extend(tensor.is_contiguous() for tensor in args)

    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_pre_hook(look)
    model(**inputs)
    return seen


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tokens_enter_every_block_and_layer_contiguous(layout, build, inputs):
    """x, context and c of each block, and what each linear layer and norm reads: else each of them copies."""
    inputs["latents"] = inputs["latents"].to(memory_format=layout)
    inputs["context"] = inputs["context"][:1].expand(2, -1, -1)
    into_blocks = strides_into(build(), inputs, JointBlock)
    assert into_blocks == [True] * 9
    model = build()
    model.context_embedder = nn.Sequential(model.context_embedder)  # what the caller gives is the caller's
    inside = strides_into(model, inputs, nn.Linear | Norm)  # pyright: ignore[reportArgumentType]
    assert len(inside) > 40
    assert inside.count(False) <= 1


def test_part_undoes_the_joining_of_context_and_x():
    tokens = torch.randn(2, 7, 12)
    context, x = part(tokens, 2)
    assert context.shape == (2, 2, 12)
    assert context.is_contiguous()
    assert x.is_contiguous()
    assert torch.equal(torch.cat([context, x], dim=1), tokens)


KINDS = {"plain": {}, "dual": {"dual": True}, "last": {"last": True}}


@pytest.mark.compile
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_block_is_the_eager_one(kind, dtype, drawn):
    """With contiguous and transposed tokens: torch 2.13 compiles a norm of the latter to NaN on some CPUs."""
    torch.compiler.reset()
    block = drawn(JointBlock(128, 2, qk_norm=True, **KINDS[kind])).to(dtype)
    generator = torch.Generator().manual_seed(0)
    x, context, c = (
        torch.randn(s, generator=generator).to(dtype) for s in ((2, 64, 128), (2, 40, 128), (2, 128))
    )
    transposed = x.transpose(1, 2).contiguous().transpose(1, 2)
    compiled = torch.compile(block, dynamic=True)
    limit = 1e-5 if dtype == torch.float32 else 2**-5  # a compiled block rounds less often than an eager one
    for tokens in (x, transposed):
        for actual, expected in zip(compiled(tokens, context, c), block(x, context, c), strict=True):
            if expected is not None:
                assert (actual - expected).abs().max() <= limit * expected.abs().max()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.compile)])
def test_another_prompt_or_size_does_not_compile_again(backend, build, inputs, monkeypatch):
    """The graphs are the same for both backends; the first runs them without a C++ compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    model, frames = build(), torch._dynamo.utils.counters["frames"]
    expected = model(**inputs)
    compile_blocks(model)
    keys = model.state_dict().keys()
    torch.testing.assert_close(model(**inputs), expected, rtol=1e-4, atol=1e-5)
    compiled = frames["total"]
    for tokens, height in ((7, 4), (11, 6), (5, 8)):
        model(**inputs | {"context": torch.ones(2, tokens, 24), "latents": torch.ones(2, 16, height, 6)})
    assert frames["total"] == compiled > 0
    eager_blocks(model)
    assert torch.equal(model(**inputs), expected)
    assert model.state_dict().keys() == keys


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_released_modulation_gives_the_same_bits(dtype, build, inputs):
    model, sigmas = build(dtype=dtype), torch.tensor([1.0, 0.75, 0.3])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls: list[Callable[[], Tensor]] = [
        lambda sigma=sigma: model(**inputs | {"sigma": sigma}) for sigma in sigmas
    ]
    expected = [call() for call in calls]
    released = release_modulation(model, sigmas, inputs["pooled"])
    assert not any("adaLN" in name for name in model.state_dict())
    assert released.saved > 0
    assert all(torch.equal(call(), answer) for call, answer in zip(calls, expected, strict=True))
    for strange in ({"sigma": torch.tensor(0.5)}, {"sigma": sigmas[0], "pooled": inputs["pooled"] + 1}):
        with pytest.raises(ValueError, match="not those that the modulation was computed for"):
            model(**inputs | strange)
    with pytest.raises(ValueError, match="released already"):
        release_modulation(model, sigmas, inputs["pooled"])
    released.restore()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(call(), answer) for call, answer in zip(calls, expected, strict=True))


@pytest.mark.parametrize(("size", "height", "width"), [(8, 2, 3), (9, 2, 3), (9, 4, 1), (5, 5, 5)])
def test_a_cropped_table_gives_the_same_bits(size, height, width, build, inputs):
    model = build(pos_embed_size=size)
    sizes = [(h, w) for h in (height, 1) for w in (width, 1)]
    pictures = [torch.ones(2, 16, 2 * h, 2 * w) for h, w in sizes]
    expected = [model(**inputs | {"latents": latents}) for latents in pictures]
    whole = crop_table(model, height, width)
    assert whole.shape[1] == size**2
    assert model.pos_embed.shape[1] <= (max(height, width) + 1) ** 2
    for latents, velocity in zip(pictures, expected, strict=True):
        assert torch.equal(model(**inputs | {"latents": latents}), velocity)


def test_flops_are_those_that_torch_counts(build, inputs):
    model = build()
    # The plain kernel, whose products torch's counter knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    assert counter.get_total_flops() == flops(model.config, height=4, width=6, context=4, batch=2)


def test_forward_derivatives_with_the_plain_kernel(build, inputs):
    """torch has no jvp of its fused attention."""
    model = build(dtype=torch.float64)
    inputs = {name: tensor.double() for name, tensor in inputs.items()}
    latents, direction = inputs.pop("latents"), torch.ones(2, 16, 4, 6, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        _, slope = torch.func.jvp(lambda x: model(x, **inputs), (latents,), (direction,))
    step = 1e-5
    ends = [model(latents + sign * step * direction, **inputs) for sign in (1, -1)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-7)
