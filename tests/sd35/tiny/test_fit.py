"""The training loop: that stopping and resuming changes nothing, and that it refuses a loss that is none."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sd35 import SettingsError
from sd35.tiny.fit import Plan, fit, seeded

PLAN = Plan(steps=12, learning_rate=1e-2, warmup=3, ema=0.9, save_every=4)


def model() -> nn.Linear:
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(2, 3, generator=seeded(1)))
        linear.bias.zero_()
    return linear


def loss_of(linear: nn.Module, stop_at: int | None = None):
    def loss_at(step: int) -> Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=seeded(2, step))
        return (linear(x) - x[:, :2]).square().mean()

    return loss_at


def test_it_learns(tmp_path: Path) -> None:
    linear = model()
    before = loss_of(linear)(99).item()
    average = fit(linear, loss_of(linear), PLAN, tmp_path / "state.safetensors", seed=0, label="test")
    assert loss_of(linear)(99).item() < before
    assert loss_of(average)(99).item() < before


def is_weight(name: str) -> bool:
    return name == "weight"


@pytest.mark.parametrize("is_hidden", [None, is_weight], ids=["AdamW", "Muon"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path, is_hidden) -> None:
    def run(linear: nn.Linear, state: str, stop_at: int | None = None) -> nn.Module:
        options = {"seed": 0, "label": "test", "is_hidden": is_hidden}
        return fit(linear, loss_of(linear, stop_at), PLAN, tmp_path / state, **options)

    straight, stopped, resumed = model(), model(), model()
    expected = run(straight, "a.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run(stopped, "b.safetensors", stop_at=7)
    actual = run(resumed, "b.safetensors")
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.equal(expected.get_parameter("weight"), actual.get_parameter("weight"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_muon_trains_hidden_matrices_and_adamw_the_rest(tmp_path: Path) -> None:
    """Muon's step has nearly equal singular values, whatever those of the gradient; AdamW's has not."""
    plan = replace(PLAN, steps=1, warmup=1, decay=0.0)
    moved = {}
    for name, is_hidden in {"muon": is_weight, "adam": None}.items():
        linear, before = model(), model()
        state = tmp_path / f"{name}.safetensors"
        fit(linear, loss_of(linear), plan, state, seed=0, label="test", is_hidden=is_hidden)
        moved[name] = torch.linalg.svdvals((linear.weight - before.weight).detach())
        assert not torch.equal(linear.bias, before.bias)
        with safe_open(state, framework="pt") as file:
            kinds = {key.split("/")[0] for key in file.keys()}  # noqa: SIM118 (a file is no dict)
        assert kinds == {"model", "ema", "adam"} | ({"muon"} if is_hidden else set())
    assert moved["muon"].min() > 0.5 * moved["muon"].max()
    assert moved["adam"].min() < 0.5 * moved["adam"].max()


@pytest.mark.parametrize(
    ("seed", "plan", "message"),
    [
        (1, PLAN, "is of a run with seed 0, not 1: go on with the same options, or choose another output"),
        (0, replace(PLAN, ema=0.5), "is of a run with ema 0.9, not 0.5"),
        (0, replace(PLAN, steps=13), "is of a run with steps 12, not 13"),
    ],
)
def test_a_state_of_another_run_is_refused(tmp_path: Path, seed: int, plan: Plan, message: str) -> None:
    state = tmp_path / "state.safetensors"
    linear = model()
    fit(linear, loss_of(linear), PLAN, state, seed=0, label="test")
    before = state.read_bytes()
    with pytest.raises(SettingsError, match=f"{state} {message}"):
        fit(linear, loss_of(linear), plan, state, seed=seed, label="test")
    assert state.read_bytes() == before


def test_a_stop_while_the_state_is_written_leaves_the_one_before(tmp_path: Path, monkeypatch) -> None:
    def cut(tensors, path: Path, metadata=None) -> None:
        path.write_bytes(b"half")
        if metadata["step"] == "8":
            raise KeyboardInterrupt
        save_file(tensors, path, metadata)

    state = tmp_path / "state.safetensors"
    linear = model()
    with monkeypatch.context() as patch:
        patch.setattr("sd35.tiny.fit.save_file", cut)
        with pytest.raises(KeyboardInterrupt):
            fit(linear, loss_of(linear), PLAN, state, seed=0, label="test")
    assert list(tmp_path.iterdir()) == [state]

    (tmp_path / ".sd35-0123.tmp").write_bytes(b"half")  # what a killed process leaves
    steps: list[int] = []
    resumed = model()
    watched = loss_of(resumed)
    fit(resumed, lambda step: steps.append(step) or watched(step), PLAN, state, seed=0, label="test")
    assert steps == list(range(4, 12))


def test_a_worker_in_bfloat16_computes_and_the_model_keeps_float32(tmp_path: Path) -> None:
    linear = model()
    worker = deepcopy(linear).bfloat16()

    def loss_at(step: int) -> Tensor:
        assert torch.equal(worker.weight, linear.weight.bfloat16())
        x = torch.randn(8, 3, generator=seeded(2, step))
        return (worker(x.bfloat16()).float() - x[:, :2]).square().mean()

    before = linear.weight.clone()
    fit(linear, loss_at, PLAN, tmp_path / "state.safetensors", seed=0, label="test", worker=worker)
    assert linear.weight.dtype == torch.float32
    assert not torch.equal(linear.weight, before)
    assert not torch.equal(linear.weight, linear.weight.bfloat16().float())


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    linear = model()
    with pytest.raises(FloatingPointError, match="NaN at step 0"):
        fit(
            linear,
            lambda step: linear.weight.sum() * float("nan"),
            PLAN,
            tmp_path / "state.safetensors",
            seed=0,
            label="test",
        )
    assert not list(tmp_path.iterdir())


def test_the_learning_rate_rises_holds_and_falls() -> None:
    rates = [PLAN.rate(step) for step in range(PLAN.steps)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert rates[3:8] == [1.0] * 5
    assert rates[-1] == pytest.approx(1 / 3.6)


def test_seeds_of_different_steps_differ() -> None:
    draws = {
        torch.rand((), generator=seeded(0, stage, step)).item() for stage in range(3) for step in range(50)
    }
    assert len(draws) == 150
