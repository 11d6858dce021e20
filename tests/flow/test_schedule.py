"""Tables of noise levels against those of both reference implementations."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flow import FlowError, sigmas, start_step

PRESETS = ("reference", "diffusers", "linear", "tailed")
STEPS, SHIFTS = (1, 2, 4, 20, 28, 40, 50), (1.0, 3.0)


@pytest.fixture(scope="module")
def goldens(shared_reference):
    return load_file(shared_reference / "parity" / "schedules.safetensors")


@pytest.mark.parametrize(("preset", "source"), [("reference", "official"), ("diffusers", "diffusers")])
def test_tables_equal_the_references_to_the_last_bit(goldens, preset, source):
    for steps in STEPS:
        for shift in SHIFTS:
            golden = goldens[f"{source}/shift{shift:g}/steps{steps}/sigmas"]
            assert torch.equal(sigmas(steps, shift, preset), golden), (steps, shift)


@pytest.mark.parametrize("preset", ["reference", "diffusers"])
def test_tables_lie_within_rounding_of_the_exact_formula(goldens, preset):
    for steps in STEPS:
        for shift in SHIFTS:
            exact = goldens[f"exact64/shift{shift:g}/steps{steps}/sigmas"]
            assert (sigmas(steps, shift, preset).double() - exact).abs().max() <= 1.3e-7


def test_known_wrong_tables_are_not_ours(goldens):
    wrong = {name: table for name, table in goldens.items() if name.startswith("wrong/")}
    assert len(wrong) == 6
    for name, table in wrong.items():
        shift = 3.0 if "/shift3/" in name else 1.0
        once = (
            "no_double_shift" in name and shift == 1.0
        )  # shifting by 1 twice is shifting once: this one is right
        for preset in ("reference", "diffusers"):
            difference = (sigmas(28, shift, preset).double() - table.double()).abs().max()
            assert (difference < 1e-6) == once, (name, preset, float(difference))


def test_last_level_above_zero_is_the_twice_shifted_smallest():
    for steps in (2, 8, 28, 100):
        assert sigmas(steps)[-2] == pytest.approx(0.0089286, abs=1e-6)


def test_linear_is_one_shift_of_even_spacing():
    assert torch.equal(sigmas(4, 1.0, "linear"), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    assert torch.allclose(sigmas(2, 3.0, "linear"), torch.tensor([1.0, 0.75, 0.0]))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 6.0])
def test_every_table_falls_strictly_from_one_to_zero(preset, shift):
    for steps in (1, 2, 3, 28, 200, 10_000):
        table = sigmas(steps, shift, preset)
        assert table.shape == (steps + 1,)
        assert table.dtype == torch.float32
        assert table[0] == 1
        assert table[-1] == 0
        assert (table.diff() < 0).all()


@pytest.mark.parametrize("bound", [0.1, 0.25, 0.4, 0.5])
@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_no_step_of_a_tailed_table_shrinks_beyond_the_bound(bound, shift):
    for steps in range(2, 101):
        table = sigmas(steps, shift, "tailed", least_ratio=bound).double()
        assert (table[1:-1] / table[:-2]).min() >= bound - 1e-6, steps


def test_the_tail_is_as_short_as_the_bound_allows_and_reaches_the_trained_level():
    smallest, bound = float(sigmas(28)[-2]), 0.4
    for steps in range(4, 101):
        for tail in range(1, steps // 2 + 1):
            even = sigmas(steps - tail + 1, preset="linear")[:-1]
            lowest = float(even[-1]) * bound ** (tail - 1)
            if lowest <= smallest:
                break
        table = sigmas(steps, preset="tailed")
        assert torch.allclose(table[: len(even)], even, atol=1e-6), steps
        assert table[-2] == pytest.approx(max(smallest, lowest), rel=1e-4), steps
        ratios = table[len(even) : -1] / table[len(even) - 1 : -2]
        assert torch.allclose(ratios, ratios[:1].expand_as(ratios), rtol=1e-4), steps


def test_known_tailed_tables():
    assert sigmas(28, preset="tailed", least_ratio=0.28)[-5:].tolist() == pytest.approx(
        [0.2, 3 / 28, math.sqrt(3 / 28 * 0.0089286), 0.0089286, 0], rel=1e-4, abs=1e-9
    )
    assert sigmas(28, preset="tailed", least_ratio=0.5)[-6:-1].tolist() == pytest.approx(
        [0.1154, 0.0609, 0.0321, 0.0169, 0.0089], abs=6e-5
    )
    assert sigmas(5, 3.0, "tailed", least_ratio=0.4).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0.2, 0])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_table_does_not_depend_on_the_default_dtype_or_device(preset, dtype):
    expected = sigmas(100, preset=preset)
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            found = sigmas(100, preset=preset)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_steps_may_be_anothers_whole_number():
    assert torch.equal(sigmas(np.int64(28)), sigmas(28))
    assert start_step(np.int32(20), np.float64(0.8)) == start_step(20, 0.8)


def test_start_step_follows_both_references(shared_reference):
    with safe_open(shared_reference / "parity" / "schedules.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    rows = next(rows for name, rows in config.items() if name.startswith("img2img_start_index"))
    assert len(rows) > 50
    for steps, strength, reference, diffusers in rows:
        assert start_step(steps, strength, "reference") == reference
        assert start_step(steps, strength, "diffusers") == diffusers


def test_start_step_differs_where_the_references_do():
    assert (start_step(20, 0.8), start_step(20, 0.8, "diffusers")) == (3, 4)
    assert start_step(28, 1.0) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sigmas(0), "at least 1"),
        (lambda: sigmas(2.5), "whole number"),
        (lambda: sigmas(4, 0.0), "positive"),
        (lambda: sigmas(4, float("nan")), "positive"),
        (lambda: sigmas(4, 3.0, "karras"), "reference, diffusers, linear, tailed"),
        (lambda: sigmas(100_000_000), "at most 10000"),
        (lambda: sigmas(True), "whole number"),
        (lambda: sigmas(4, preset="tailed", least_ratio=0.6), r"\(0, 0.5\]"),
        (lambda: sigmas(4, preset="linear", least_ratio=0.4), "belongs to preset 'tailed'"),
        (lambda: start_step(20, 0.0), "above 0"),
        (lambda: start_step(20, 1.5), "at most 1"),
        (lambda: start_step(0, 0.5), "at least 1"),
        (lambda: start_step(20, 0.5, "linear"), "reference or diffusers"),
    ],
)
def test_bad_requests_are_named(call, message):
    with pytest.raises(FlowError, match=message):
        call()
