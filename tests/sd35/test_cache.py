"""Step caches in a generation: what is left out, and the rules that caches around guidance break easily."""

from typing import Any

import pytest
import torch

import flow
from sd35 import Control, GuidedVelocity, SettingsError
from sd35.cache import FIRST, FirstBlock, block_cache, velocity_cache, windows_of
from sd35.settings import settings_of

TABLE = flow.sigmas(12)
PROMPT = "a red circle"
LONG = "a red circle on the left " * 16  # a context of another length: the branches are called one by one
SKIP = flow.SkipLayer(2.0, 0.01, 0.9, (1,))


class Watch:
    """A condition that stands between a cache and the transformer, and notes every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, tuple[str, ...], int]] = []  # σ, branches, blocks left out

    def __call__(self, call, run):
        self.calls.append((call.evaluation.sigma, call.evaluation.branches, len(call.skip_layers)))
        return run(call)


class Steered:
    """A condition that adds residuals after both blocks, as a ControlNet does, of what depends on σ."""

    def __call__(self, call, run):
        tokens = call.latents.shape[2] * call.latents.shape[3] // 4
        generator = torch.Generator().manual_seed(1)
        made = torch.randn(2, 1, tokens, 64, generator=generator) * call.sigma.reshape(1, -1, 1, 1)
        return run(call.with_residuals(list(made), 2))


def velocities(
    pipe, threshold, *, negative="", conditions=(), prompts=(PROMPT,), windows=(), **options
) -> Any:
    """The guided velocity without a cache, with one, the cache, and what the transformer was called for."""
    cond, uncond = [pipe.encode_prompt(prompt) for prompt in prompts], pipe.encode_prompt(negative)
    watch, cache = Watch(), FirstBlock(pipe.mmdit, TABLE, threshold, windows)
    made = [
        GuidedVelocity(pipe.mmdit, cond, uncond, 4.5, sigmas=TABLE, conditions=those, **options)
        for those in (conditions, [*conditions, cache, watch])
    ]
    return (*made, cache, watch)


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))


CASES = [
    {},
    {"negative": LONG},
    {"skip": SKIP},
    {"skip": SKIP, "negative": LONG},
    {"conditions": [Steered()]},
    {"conditions": [Steered()], "skip": SKIP, "negative": LONG},
    {"batch_size": 2},
]
NAMES = ["plain", "apart", "skipping", "skipping apart", "steered", "all of it", "two in a batch"]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_hit_where_nothing_changed_is_the_velocity(pipe, noise, case) -> None:
    """Residuals are not added twice, and no branch is answered from another: each would be far off."""
    plain, cached, cache, watch = velocities(pipe, 1e-3, prompts=(PROMPT, "a star"), **case)
    for level in TABLE[: FIRST + 2]:
        assert torch.equal(cached(noise, level), plain(noise, level))
    near = TABLE[FIRST + 1] - 1e-6
    watch.calls.clear()
    found, true = cached(noise, near), plain(noise, near)
    assert {left_out for _, _, left_out in watch.calls} == {pipe.mmdit.config.depth - 1}
    assert not cache.computed[-1]
    torch.testing.assert_close(found, true, rtol=0, atol=1e-4 * float(true.abs().max()))


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_all_branches_follow_one_decision(pipe, noise, case) -> None:
    """None is old while another is new, which guidance would multiply."""
    _, cached, cache, watch = velocities(pipe, 1e9, **case)
    flow.solve(cached, noise[:1], TABLE)
    assert cache.computed == [True] * FIRST + [False] * (11 - FIRST) + [True]
    for level, computed in zip(TABLE.tolist(), cache.computed, strict=False):
        left_out = {blocks for sigma, _, blocks in watch.calls if sigma == level}
        assert (left_out == {pipe.mmdit.config.depth - 1}) != computed


def test_the_row_that_changed_most_decides(pipe, noise) -> None:
    """Of a batch of one picture that stands still and one that moves, both are computed."""
    *_, cached, cache, _ = velocities(pipe, 1e-2, prompts=(PROMPT, PROMPT), batch_size=2)
    for level in TABLE[: FIRST + 2]:
        cached(noise, level)
    moved = torch.cat([noise[:1], noise[1:] + 1])
    cached(moved, TABLE[FIRST + 1] - 1e-6)
    assert cache.computed[-1]


def test_it_begins_anew_and_keeps_pictures_apart(pipe, noise) -> None:
    _, cached, cache, _ = velocities(pipe, 0.3)
    first = flow.solve(cached, noise[:1], TABLE)
    computed = list(cache.computed)
    assert torch.equal(flow.solve(cached, noise[:1], TABLE), first)
    assert cache.computed == computed
    _, both, *_ = velocities(pipe, 0.3, prompts=(PROMPT, "a star"))
    assert torch.equal(flow.solve(both, noise, TABLE)[:1], first)


@pytest.mark.parametrize("cache", ["velocity", "block", (0, 1, 2, 4, 7, 11)])
def test_a_picture_is_drawn_again_from_what_it_carries(pipe, cache, tmp_path) -> None:
    given = {"steps": 12, "seed": 3} | ({} if isinstance(cache, tuple) else {"cache_threshold": 0.9})
    plain = pipe.generate(["a", "b"], steps=12, seed=3)
    drawn = pipe.generate(["a", "b"], cache=cache, **given)
    assert not torch.equal(drawn.latents, plain.latents)
    path = drawn.save(tmp_path / "picture.png")[1]
    again = pipe.generate("b", **{**given, "seed": 4}, cache=cache)
    assert torch.equal(again.latents, drawn.latents[1:])
    inverted = pipe.invert(path, method="naive", measure=False)
    assert inverted.settings.cache == "none"
    assert sum("was drawn with a cache" in note for note in inverted.notes) == 1


def test_the_velocity_is_computed_where_the_steps_say(pipe) -> None:
    seen: list[float] = []
    handle = pipe.mmdit.register_forward_pre_hook(lambda module, inputs: seen.append(float(inputs[1][0])))
    try:
        pipe.generate("a", steps=6, cache=(0, 2, 5), guidance_scale=1)
        own, seen[:] = list(seen), []
        pipe.generate("a", steps=6, cache=(0, 2, 5), guidance_scale=1, guidance={"zero_steps": 1})
    finally:
        handle.remove()
    assert own == flow.sigmas(6)[[0, 2, 5]].tolist()
    assert seen == flow.sigmas(6)[[1, 2, 5]].tolist()  # the zero of step 0 is no velocity to be used again


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cache": "velocity", "solver": "leapfrog"}, "could not be undone"),
        ({"cache": "block", "solver": "dopri5"}, "chooses its levels as it goes"),
        (
            {"cache": "block", "batch_size": 2, "images_per_prompt": 2},
            "a picture would depend on those beside",
        ),
        ({"cache": (1, 2)}, "rising numbers of steps, from 0"),
        ({"cache": (0, 28)}, "steps of 0 to 27"),
        ({"cache": "tea"}, "one of none, velocity, block"),
        ({"cache_threshold": 0.1}, "only with the cache velocity or block"),
        ({"cache": "0,1", "cache_threshold": 0.1}, "only with the cache velocity or block"),
    ],
)
def test_what_does_not_fit_is_refused(pipe, given, message) -> None:
    with pytest.raises(SettingsError, match=message):
        pipe.generate("a", **given)


def test_inversion_has_no_cache(pipe) -> None:
    latents = torch.zeros(1, 16, 4, 4)
    with pytest.raises(SettingsError, match="cache: that is told by the picture itself"):
        pipe.invert(latents, "a", cache="velocity")
    with pytest.raises(SettingsError, match="a report shows what every step computes"):
        pipe.record("a", steps=2, cache="velocity")


def test_the_ends_of_guidance_and_of_skipping_are_told() -> None:
    guidance = {"interval": (0.7, 1.0), "skip_layer": SKIP}
    sigmas = flow.sigmas(28)
    found = windows_of(settings_of({"prompts": "a", "guidance": guidance}))
    assert found == [(0.7, 1.0), SKIP.window(sigmas)]
    assert windows_of(settings_of({"prompts": "a"})) == []


def test_both_caches_are_told_the_windows(pipe) -> None:
    given = {"prompts": "a", "guidance": {"interval": (0.7, 1.0)}}
    (block,) = block_cache(pipe.mmdit, settings_of({**given, "cache": "block"}))
    made = velocity_cache(settings_of({**given, "cache": "velocity"}))
    assert isinstance(block, FirstBlock)
    assert made is not None
    velocity = made(pipe.velocity("a"))
    assert isinstance(velocity, flow.Cached)
    assert block.windows == velocity.windows == ((0.7, 1.0),)


def test_a_window_of_whole_steps_ends_where_the_last_of_them_does() -> None:
    """A solver may ask between two levels of the table."""
    sigmas = flow.sigmas(8).tolist()
    control = Control(source="net.safetensors", image="edges.png", start=0.25, end=0.5)
    settings = settings_of({"prompts": "a", "steps": 8, "guidance": {"zero_steps": 2}, "control": control})
    (_, top), steered = windows_of(settings)
    for (low, high), first, end in (((_, top), 0, 2), (steered, 2, 4)):
        assert high == sigmas[first]
        assert sigmas[end] < low < sigmas[end] + 1e-9


@pytest.mark.parametrize("negative", ["", LONG], ids=["together", "apart"])
@pytest.mark.parametrize("window", ["skipping", "interval"])
def test_where_a_window_begins_all_branches_are_computed(pipe, noise, window, negative) -> None:
    low, skip = float(TABLE[FIRST + 3]), flow.SkipLayer(2.0, 0.55, 0.9, (1,))
    options: dict[str, Any] = {"skip": skip} if window == "skipping" else {"interval": (0, low)}
    windows = [skip.window(TABLE) if window == "skipping" else (0, low)]
    _, cached, cache, watch = velocities(pipe, 1e9, negative=negative, windows=windows, **options)
    flow.solve(cached, noise[:1], TABLE)
    assert cache.computed == [*[True] * FIRST, *[False] * 3, True, *[False] * 3, True]
    for level, computed in zip(TABLE.tolist(), cache.computed, strict=False):
        # The layers that skip-layer guidance leaves out are as many as a hit does.
        left_out = {
            blocks for sigma, names, blocks in watch.calls if sigma == level and "skipped" not in names
        }
        assert left_out == {0 if computed else pipe.mmdit.config.depth - 1}
