"""The training loop: it learns in its time, keeps an average, comes back from what is no number."""

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sd35.noise import seeded
from sd35.tiny.fit import Plan, Run, Trainer

PLAN = Plan(learning_rate=1e-2, warmup=0.1, decay=0.5, ema=0.9)


def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 2))


def loss_of(module: nn.Module, step: int) -> Tensor:
    x = torch.randn(32, 8, generator=seeded(2, step))
    dtype = next(module.parameters()).dtype
    return (module(x.to(dtype)).float() - x[:, :2]).square().mean()


def is_hidden(name: str) -> bool:
    return name == "0.weight"


def test_it_learns_and_leaves_the_average() -> None:
    trained = model()
    before = loss_of(trained, 999).item()
    trainer = Trainer(trained, PLAN, is_hidden)
    for step in range(200):
        loss_of(trainer.worker, step).backward()
        trainer.step(step / 200)
    last = [parameter.detach().clone() for parameter in trained.parameters()]
    averaged = trainer.averaged()
    trainer.finish()
    assert loss_of(trained, 999).item() < before / 20
    assert any(not torch.equal(one, other) for one, other in zip(last, trained.parameters(), strict=True))
    assert all(
        torch.equal(one, other)
        for one, other in zip(averaged.parameters(), trained.parameters(), strict=True)
    )


def test_what_is_not_trained_stays() -> None:
    trained = model()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    trainer = Trainer(trained, PLAN, is_hidden, is_trained=lambda name: name.startswith("1."))
    loss_of(trainer.worker, 0).backward()
    trainer.step(0.2)
    trainer.finish()
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {"1.weight", "1.bias"}


def test_the_rate_rises_stays_and_falls() -> None:
    shares = (0.0, 0.05, 0.3, 0.5, 0.75, 1.0)
    rates = [PLAN.rate(share) / PLAN.learning_rate for share in shares]
    assert rates == pytest.approx([0.01, 0.51, 1.0, 1.0, 0.5, 0.0])


def test_a_stage_ends_in_time_and_saves_on_the_way(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sd35.tiny.fit.REPORT", 0.0)
    trainer, saves = Trainer(model(), PLAN, is_hidden), []
    run = Run(0.01, tmp_path / "log", began=time.monotonic(), every=0.0)
    run.save = lambda: saves.append(trainer.steps)
    losses = {"loss": torch.ones(())}
    shares = []
    for share in run.stage("test", 0.1, examples=1, losses=losses, trainer=trainer):
        shares.append(share)
        loss_of(trainer.worker, trainer.steps).backward()
        trainer.step(share)
    assert run.left() <= 0.1
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] < 1
    assert saves
    assert "ended after" in (tmp_path / "log").read_text()


def test_it_goes_back_from_what_is_no_number(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sd35.tiny.fit.REPORT", 0.0)
    trainer = Trainer(model(), PLAN, is_hidden)
    run = Run(1.0, tmp_path / "log", began=time.monotonic())
    losses = {"loss": torch.ones(())}
    stage = run.stage("test", 0.0, examples=1, losses=losses, trainer=trainer)
    next(stage)
    next(stage)  # a report, with weights worth keeping
    kept = [one.clone() for one in trainer.average]
    losses["loss"] = torch.tensor(float("nan"))
    for tensors in (trainer.average, trainer.parameters):
        for one in tensors:
            one.data.fill_(float("nan"))
    next(stage)
    assert all(torch.equal(one, other) for one, other in zip(kept, trainer.parameters, strict=True))


def test_a_loss_that_never_was_a_number_ends_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sd35.tiny.fit.REPORT", 0.0)
    run = Run(1.0, tmp_path / "log", began=time.monotonic())
    losses = {"loss": torch.tensor(float("nan"))}
    stage = run.stage("test", 0.0, examples=1, losses=losses, trainer=Trainer(model(), PLAN, is_hidden))
    next(stage)
    with pytest.raises(FloatingPointError, match="from the first steps on"):
        next(stage)
