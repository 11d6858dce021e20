"""The training loop: that stopping and resuming changes nothing, and that it refuses a loss that is none."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sd35.train.fit import Plan, fit, seeded

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
    average = fit(linear, loss_of(linear), PLAN, tmp_path / "state.safetensors", label="test")
    assert loss_of(linear)(99).item() < before
    assert loss_of(average)(99).item() < before


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    straight = model()
    expected = fit(straight, loss_of(straight), PLAN, tmp_path / "a.safetensors", label="test")
    stopped = model()
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, loss_of(stopped, stop_at=7), PLAN, tmp_path / "b.safetensors", label="test")
    resumed = model()
    actual = fit(resumed, loss_of(resumed), PLAN, tmp_path / "b.safetensors", label="test")
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.equal(expected.get_parameter("weight"), actual.get_parameter("weight"))
    assert not list(tmp_path.glob("*.partial"))


def test_a_worker_in_bfloat16_computes_and_the_model_keeps_float32(tmp_path: Path) -> None:
    linear = model()
    worker = deepcopy(linear).bfloat16()

    def loss_at(step: int) -> Tensor:
        assert torch.equal(worker.weight, linear.weight.bfloat16())
        x = torch.randn(8, 3, generator=seeded(2, step))
        return (worker(x.bfloat16()).float() - x[:, :2]).square().mean()

    before = linear.weight.clone()
    fit(linear, loss_at, PLAN, tmp_path / "state.safetensors", label="test", worker=worker)
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
