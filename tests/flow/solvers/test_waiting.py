"""A solver never makes the host wait for the device at a step, and still names the step that went wrong."""

import pytest
import torch
from torch import Tensor

from flow import SOLVERS, FlowError, flow_edit, guided, integrate, inverting, last, sigmas, solve
from flow.solvers.base import VelocityError, watched

TABLE = sigmas(6)
DECIDES = ("dopri5", "bitexact")
"""Solvers that look at values as they go: one chooses its steps, the other compares bits."""
LOOKS = (
    Tensor.item,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.tolist,
    Tensor.cpu,
    Tensor.nonzero,
    torch.equal,
)


class Remote(Tensor):
    """A tensor that says it is on a GPU, and counts how often the host asks for its values."""

    looks = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func == Tensor.device.__get__:
            return torch.device("cuda")
        cls.looks += func in LOOKS
        return super().__torch_function__(func, types, args, kwargs or {})


def seen_by(velocity):
    """The velocity, and a list to which each call adds how often the host has looked so far."""
    counts: list[int] = []

    def counted(x, sigma):
        assert isinstance(x, Remote)
        counts.append(Remote.looks)
        return velocity(x, sigma)

    return counted, counts


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in DECIDES])
@pytest.mark.parametrize("table", [TABLE, TABLE.flip(0)], ids=["down", "up"])
def test_no_step_looks(name, table, noise_for):
    if name == "rex" and table[0] < table[-1]:
        pytest.skip("no way up")
    generator = {"generator": torch.Generator().manual_seed(0)} if SOLVERS[name].stochastic else {}
    velocity, counts = seen_by(lambda x, sigma: 0.5 * x)
    steps = SOLVERS[name].run(velocity, noise_for(2).as_subclass(Remote), table, **generator)
    last(steps)
    assert len(counts) >= 6
    assert counts[0] == counts[-1]
    assert Remote.looks == counts[-1] + 1  # once, when all is done


@pytest.mark.parametrize("name", [name for name, one in SOLVERS.items() if one.undo and name not in DECIDES])
def test_no_step_back_looks(name, noise_for):
    x = noise_for(2)
    there = integrate(lambda x, sigma: 0.5 * x, x, TABLE, name)
    assert there.companion is not None
    velocity, counts = seen_by(lambda x, sigma: 0.5 * x)
    undo = SOLVERS[name].undo
    assert undo is not None
    companion = {key: value.as_subclass(Remote) for key, value in there.companion.tensors.items()}
    last(undo(velocity, there.x.as_subclass(Remote), companion, TABLE))
    assert counts[0] == counts[-1]


@pytest.mark.parametrize("method", ["naive", "uni_inv", "fixed_point"])
def test_published_inverses_do_not_look(method, noise_for):
    velocity, counts = seen_by(lambda x, sigma: 0.5 * x)
    for _ in inverting(velocity, noise_for(2).as_subclass(Remote), TABLE, method):
        pass
    assert counts[0] == counts[-1]


def test_editing_and_guidance_do_not_look(noise_for):
    cond, counts = seen_by(lambda x, sigma: 0.5 * x)
    velocity = guided(cond, lambda x, sigma: 0.1 * x, 4.5)
    generator = torch.Generator().manual_seed(0)
    last(flow_edit(velocity, velocity, noise_for(2).as_subclass(Remote), TABLE, generator=generator))
    assert len(counts) == 12
    assert counts[0] == counts[-1]


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in DECIDES])
def test_the_step_that_went_wrong_is_named_afterwards(name, noise_for):
    generator = {"generator": torch.Generator().manual_seed(0)} if SOLVERS[name].stochastic else {}
    table, calls = torch.linspace(1, 0.2, 5), []

    def velocity(x, sigma):
        calls.append(1)
        return torch.where(sigma.reshape(-1, 1, 1, 1) < 0.5, torch.nan, 0.5 * x)

    with pytest.raises(FlowError, match=r"not finite at step [123], sigma 0\.[234]\d*: \d+ of 128 values"):
        solve(velocity, noise_for(2).as_subclass(Remote), table, name, **generator)
    here = len(calls)
    with pytest.raises(FlowError, match=r"not finite at step [123], sigma 0\.[234]"):
        solve(velocity, noise_for(2), table, name, **generator)
    assert len(calls) - here <= here  # on the CPU, where nothing waits, at once


def test_a_run_that_is_left_early_raises_nothing(noise_for):
    steps = SOLVERS["euler"].run(lambda x, sigma: x * torch.nan, noise_for(2).as_subclass(Remote), TABLE)
    assert next(steps).number == 0


def test_other_faults_are_told_at_once(noise_for):
    run = watched(SOLVERS["euler"].run)
    with pytest.raises(VelocityError, match="must return"):
        next(run(lambda x, sigma: x[:1], noise_for(2).as_subclass(Remote), TABLE))
