"""A module put in another's place, and taken back."""

import copy

import pytest
import torch
from torch import nn

from sd35 import SettingsError, capture
from sd35.adapters.swap import Swap

PATH = "joint_blocks.0.x_block.attn.qkv"


class Scaled(nn.Module):
    def __init__(self, base: nn.Module, factor: float) -> None:
        super().__init__()
        self.base, self.factor = base, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) * self.factor


@pytest.fixture
def mmdit(pipe):
    return copy.deepcopy(pipe.mmdit)


def velocity(mmdit, pipe) -> torch.Tensor:
    encoding = pipe.encode_prompt("a red circle")
    x = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    return mmdit(x, torch.full((1,), 0.5), encoding.context, encoding.pooled)


def test_what_stands_in_a_place_runs_there_and_the_base_comes_back_to_the_last_bit(mmdit, pipe) -> None:
    before, base = velocity(mmdit, pipe), mmdit.get_submodule(PATH)
    with Swap(mmdit, {PATH: lambda own: Scaled(own, 2.0)}):
        assert not torch.equal(velocity(mmdit, pipe), before)
        with capture(mmdit, PATH) as taps:
            velocity(mmdit, pipe)
        assert len(taps.records) == 1  # hooks see what stands there
    assert mmdit.get_submodule(PATH) is base
    assert torch.equal(velocity(mmdit, pipe), before)


def test_several_lie_on_one_another_and_come_off_in_the_reverse_order(mmdit, pipe) -> None:
    before = velocity(mmdit, pipe)
    first = Swap(mmdit, {PATH: lambda own: Scaled(own, 2.0)})
    alone = velocity(mmdit, pipe)
    second = Swap(mmdit, {PATH: lambda own: Scaled(own, 0.5)})
    assert torch.equal(velocity(mmdit, pipe), before)  # twice, then half
    with pytest.raises(
        SettingsError, match=r"another module was put in place later \(Scaled\): take that back"
    ):
        first.undo()
    second.undo()
    assert torch.equal(velocity(mmdit, pipe), alone)
    first.undo()
    first.undo()
    assert torch.equal(velocity(mmdit, pipe), before)


def test_all_are_put_in_place_or_none(mmdit) -> None:
    def fail(own: nn.Module) -> nn.Module:
        raise RuntimeError

    own = mmdit.get_submodule(PATH)
    with pytest.raises(RuntimeError):
        Swap(mmdit, {PATH: lambda base: Scaled(base, 2.0), "x_embedder": fail})
    with pytest.raises(SettingsError, match=r"there is no module joint_blocks\.9 in MMDiT"):
        Swap(mmdit, {PATH: lambda base: Scaled(base, 2.0), "joint_blocks.9": fail})
    with pytest.raises(
        SettingsError, match=r"joint_blocks\.0\.x_block\.attn\.qkv lies within joint_blocks\.0"
    ):
        Swap(mmdit, {"joint_blocks.0": fail, PATH: fail})
    assert mmdit.get_submodule(PATH) is own
