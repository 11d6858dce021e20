"""Recorded maps against the attention that the model computes."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from einops import rearrange

from mmdit import MMDiT, MMDiTConfig
from sd35.attention import attention_maps
from sd35.attention.quadrants import PARTS, QUADRANTS, Grid
from sd35.taps import TapError, capture, patch

PROMPT = "a red circle above a blue square"
M, ROWS, COLUMNS = 154, 3, 4


@pytest.fixture(scope="module")
def inputs(text):
    generator = torch.Generator().manual_seed(3)
    encoding = text.encode([PROMPT, "a green star"])
    latents = torch.randn(2, 16, 2 * ROWS, 2 * COLUMNS, generator=generator)
    return (latents, torch.tensor([0.5, 0.9]), encoding.context, encoding.pooled), encoding


def full_map(maps, block, sample=0):
    """The four quadrants put together."""
    get = {part: maps.part(part, block=block, sample=sample) for part in QUADRANTS}
    text = torch.cat([get["text-text"], get["text-image"]], dim=1)
    return torch.cat([text, torch.cat([get["image-text"], get["image-image"]], dim=1)])


def test_equals_the_explicit_softmax_of_captured_queries_and_keys(mmdit, inputs):
    args, _ = inputs
    before = mmdit(*args)
    with attention_maps(mmdit, PARTS, branch=None) as maps, capture(mmdit, "**.ln_[qk]") as taps:
        during = mmdit(*args)
    assert torch.equal(before, during)
    for block, sample in product(range(3), range(2)):
        q, k = (
            torch.cat(
                [
                    taps[f"joint_blocks.{block}.{stream}_block.attn.ln_{one}"][sample]
                    for stream in ("context", "x")
                ],
                dim=1,
            )
            for one in "qk"
        )
        expected = torch.softmax(q.double() @ k.double().transpose(1, 2) / 8, dim=-1).mean(dim=0).float()
        got = full_map(maps, block, sample)
        assert got.shape == (M + ROWS * COLUMNS,) * 2
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(got.sum(dim=1), torch.ones(len(got)))


def test_the_probabilities_give_what_the_attention_gave(mmdit, inputs):
    args, _ = inputs
    with (
        attention_maps(mmdit, PARTS, blocks=[1], keep=["head"], branch=None) as maps,
        capture(
            mmdit, "joint_blocks.1.attention", "joint_blocks.1.**.v", "joint_blocks.1.x_block.attn2"
        ) as taps,
    ):
        mmdit(*args)
    at = "joint_blocks.1"
    v = torch.cat([taps[f"{at}.context_block.attn.v"][0], taps[f"{at}.x_block.attn.v"][0]], dim=1)
    heads = [
        torch.cat(
            [
                torch.cat([maps.part(f"{query}-{key}", head=head) for key in ("text", "image")], dim=1)
                for query in ("text", "image")
            ]
        )
        for head in range(2)
    ]
    out = rearrange(torch.stack(heads) @ v, "h l k -> l (h k)")
    torch.testing.assert_close(out, taps[f"{at}.attention"][0], rtol=1e-4, atol=1e-5)

    second = (
        torch.stack([maps.part("attn2", head=head) for head in range(2)]) @ taps[f"{at}.x_block.attn2.v"][0]
    )
    out2 = mmdit.joint_blocks[1].x_block.attn2.proj(rearrange(second, "h l k -> l (h k)"))
    torch.testing.assert_close(out2, taps[f"{at}.x_block.attn2"][0], rtol=1e-4, atol=1e-5)


def test_models_without_norms_of_queries(inputs):
    (latents, sigma, context, pooled), _ = inputs
    plain = MMDiT(
        MMDiTConfig(
            dim=128, depth=1, num_heads=2, pos_embed_size=8, context_dim=128, pooled_dim=128, qk_norm=False
        )
    ).requires_grad_(False)
    with attention_maps(plain, QUADRANTS, branch=None) as maps:
        plain(latents, sigma, context, pooled)
    torch.testing.assert_close(full_map(maps, 0).sum(dim=1), torch.ones(M + ROWS * COLUMNS))


def test_steps_heads_and_branches(pipe, mmdit):
    settings = {"steps": 3, "guidance_scale": 3.0}
    with (
        attention_maps(mmdit, keep=["step", "head"]) as apart,
        attention_maps(mmdit) as mean,
        attention_maps(mmdit, steps=[1]) as one,
        attention_maps(mmdit, branch="uncond") as uncond,
    ):
        pipe.generate(PROMPT, **settings)
    for part in ("image-text", "text-image"):
        each = [[apart.part(part, step=step, head=head) for head in range(2)] for step in range(3)]
        stacked = torch.stack([torch.stack(row) for row in each])
        assert not torch.allclose(stacked[0], stacked[2])
        torch.testing.assert_close(stacked.mean(dim=(0, 1)), mean.part(part))
        torch.testing.assert_close(stacked[1].mean(dim=0), one.part(part))
        torch.testing.assert_close(apart.part(part), mean.part(part))
        assert not torch.allclose(uncond.part(part), mean.part(part))
    assert mean.grid == Grid(3, 4, 1)
    assert uncond.encoding().prompts[0].text == ""


def test_images_of_a_batch_have_maps_and_prompts_of_their_own(pipe, mmdit):
    prompts = [PROMPT, "a green star"]
    with attention_maps(mmdit, blocks=[2]) as together:
        pipe.generate(prompts, steps=1, seed=5)
    with attention_maps(mmdit, blocks=[2]) as alone:
        pipe.generate(prompts[1], steps=1, seed=6)
    assert torch.equal(together.part("image-text", sample=1), alone.part("image-text"))
    assert [together.encoding(sample).prompts[0].text for sample in range(2)] == prompts
    assert together.heatmap("star", sample=1).shape == (3, 4)


def test_sees_an_outer_patch(mmdit, inputs):
    args, _ = inputs
    patched = patch(mmdit, {"joint_blocks.0.context_block.attn.ln_k": lambda k: torch.full_like(k, -1e4)})
    ones = patch(mmdit, {"joint_blocks.0.*_block.attn.ln_q": torch.ones_like})
    with patched, ones, attention_maps(mmdit, blocks=[0], branch=None) as maps:
        mmdit(*args)
    assert maps.part("image-text").max() == 0


def test_maps_are_of_the_logits_that_a_patch_put_there(mmdit, inputs):
    args, _ = inputs
    tap = "joint_blocks.1.attention.logits"
    with attention_maps(mmdit, PARTS, blocks=[1], branch=None) as plain:
        mmdit(*args)
    with patch(mmdit, {tap: torch.zeros_like}), attention_maps(mmdit, PARTS, blocks=[1], branch=None) as even:
        mmdit(*args)
    length = M + ROWS * COLUMNS
    torch.testing.assert_close(full_map(even, 1), torch.full((length, length), 1 / length))
    assert torch.equal(even.part("attn2"), plain.part("attn2"))
    same_logits = patch(mmdit, {tap: lambda logits: logits + 0})
    with same_logits, attention_maps(mmdit, QUADRANTS, blocks=[1], branch=None) as same:
        mmdit(*args)
    torch.testing.assert_close(full_map(same, 1), full_map(plain, 1))


class Even(torch.nn.Module):
    """A user's attention, in which every query reads from all keys alike."""

    def forward(self, q, k, v):
        return v.mean(dim=2, keepdim=True).expand_as(v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("path", ["joint_blocks.1.attention", "joint_blocks.1.x_block.attn2.attention"])
def test_a_module_in_an_attentions_place_is_told_and_not_guessed(mmdit, inputs, path):
    args, _ = inputs
    plain, kept = mmdit(*args), mmdit.get_submodule(path)
    try:
        mmdit.set_submodule(path, Even())
        assert not torch.equal(mmdit(*args), plain)  # it is what the model runs
        with pytest.raises(
            TapError, match=rf"what {path} does cannot be recorded: a Even was put in its place"
        ):
            attention_maps(mmdit, PARTS, branch=None)
        with attention_maps(mmdit, PARTS, blocks=[0, 2], branch=None) as maps:
            mmdit(*args)
        assert maps.blocks == [0, 2]
    finally:
        mmdit.set_submodule(path, kept)
    with (
        pytest.raises(TapError, match=f"{path} was replaced inside the block"),
        attention_maps(mmdit, PARTS, branch=None),
    ):
        mmdit.set_submodule(path, Even())
    mmdit.set_submodule(path, kept)
    kept.forward = Even().forward
    try:
        with pytest.raises(TapError, match=f"what {path} does cannot be recorded"):
            attention_maps(mmdit, PARTS, branch=None)
    finally:
        del kept.forward


def test_maps_of_one_thread_are_of_what_it_runs(mmdit, inputs):
    args, _ = inputs
    latents, *others = args
    with attention_maps(mmdit, branch=None) as maps, ThreadPoolExecutor(1) as pool:
        pool.submit(mmdit, -latents, *others).result()
        mmdit(*args)
    with attention_maps(mmdit, branch=None) as alone:
        mmdit(*args)
    assert torch.equal(maps.part("image-text"), alone.part("image-text"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_no_map(mmdit, inputs, dtype):
    args, _ = inputs
    with attention_maps(mmdit, PARTS, pool=2, branch=None) as plain:
        mmdit(*args)
    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with attention_maps(mmdit, PARTS, pool=2, branch=None) as maps:
            mmdit(*args)
        assert all(torch.equal(maps.part(part), plain.part(part)) for part in PARTS)
        assert {maps.part(part).dtype for part in PARTS} == {torch.float32}
    finally:
        torch.set_default_dtype(usual)


def test_gradients_stay_out_of_the_maps(mmdit, inputs):
    (latents, *others), _ = inputs
    with attention_maps(mmdit, branch=None) as maps:
        mmdit(latents.clone().requires_grad_(), *others)
    assert not maps.part("image-text").requires_grad


def test_what_does_not_exist(mmdit, pipe, inputs):
    args, _ = inputs
    with pytest.raises(TapError, match=r"no 'image-txt' of the attention.*did you mean image-text"):
        attention_maps(mmdit, ["image-txt"])
    with pytest.raises(TapError, match=r"blocks must be 0 to 2, got \[7\]"):
        attention_maps(mmdit, blocks=[1, 7])
    with pytest.raises(TapError, match="keep takes 'head' and 'step', got 'heads'"):
        attention_maps(mmdit, keep=["heads"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TapError, match="pool must be at least 1"):
        attention_maps(mmdit, pool=0)
    with pytest.raises(TapError, match=r"nothing to record of attn2 in blocks \[2\]"):
        attention_maps(mmdit, ["attn2"], blocks=[2])
    with pytest.raises(TapError, match="nothing to record of no part"):
        attention_maps(mmdit, [])
    with pytest.raises(TapError, match="leave `steps` and `branch` out"), attention_maps(mmdit):
        mmdit(*args)
    with (
        pytest.raises(TapError, match="no attention was recorded"),
        attention_maps(mmdit),
    ):
        pass
    with pytest.raises(TapError, match=r"steps \[9\] never came"), attention_maps(mmdit, steps=[0, 9]):
        pipe.generate(PROMPT, steps=1)


def test_prompts_of_another_length_need_a_block_of_their_own(mmdit, pipe):
    with attention_maps(mmdit) as maps:
        pipe.generate(PROMPT, steps=1)
        with pytest.raises(TapError, match=r"are \(12, 154\), and now \(12, 333\)"):
            pipe.generate(PROMPT, steps=1, policy="diffusers")
    assert maps.heatmap("circle").shape == (3, 4)
