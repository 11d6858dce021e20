"""Tables of noise levels against both implementations, each by its preset, to the last float32 bit."""

from itertools import product

import pytest
import torch

import flow

STEPS = (1, 2, 4, 20, 28, 40, 50)
SHIFTS = (1.0, 3.0)


def test_preset_diffusers_is_diffusers(reference) -> None:
    file = reference("schedules")
    for shift, steps in product(SHIFTS, file.config["steps"]):
        table = flow.sigmas(steps, shift, preset="diffusers")
        assert torch.equal(table, file[f"shift{shift:g}/steps{steps}/sigmas"]), (shift, steps)


def test_timesteps_are_a_thousand_sigmas(reference) -> None:
    """What diffusers hands its network: float32, neither rounded nor truncated."""
    file = reference("schedules")
    for shift, steps in product(SHIFTS, file.config["steps"]):
        table = flow.sigmas(steps, shift, preset="diffusers")
        assert torch.equal(1000 * table[:-1], file[f"shift{shift:g}/steps{steps}/timesteps"]), (shift, steps)


@pytest.mark.parametrize(("preset", "source"), [("reference", "official"), ("diffusers", "diffusers")])
def test_each_preset_is_its_implementation(preset: str, source: str, golden) -> None:
    file = golden("schedules")
    for shift, steps in product(SHIFTS, STEPS):
        table = flow.sigmas(steps, shift, preset=preset)
        assert torch.equal(table, file[f"{source}/shift{shift:g}/steps{steps}/sigmas"]), (shift, steps)


def test_presets_differ_in_rounding_only(golden) -> None:
    file = golden("schedules")
    for shift, steps in product(SHIFTS, STEPS):
        exact = file[f"exact64/shift{shift:g}/steps{steps}/sigmas"]
        for preset in ("reference", "diffusers"):
            assert (flow.sigmas(steps, shift, preset=preset) - exact).abs().max() < 1.3e-7


def test_tables_that_are_often_written_instead(golden) -> None:
    """Shifted once, shifted to zero, ending at 1/n: none of them is within 1e-3 of ours at 28 steps."""
    file = golden("schedules")
    wrong = {name: table for name, table in file.under("wrong/").items() if "shift3" in name}
    assert len(wrong) == 3
    for name, table in wrong.items():
        for preset in ("reference", "diffusers"):
            ours = flow.sigmas(28, 3.0, preset=preset).double()
            size = max(len(ours), len(table))
            ours, table = (torch.nn.functional.pad(t, (0, size - len(t))) for t in (ours, table))
            assert (ours - table).abs().max() > 1e-3, name
