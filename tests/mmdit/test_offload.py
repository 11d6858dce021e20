"""Blocks that visit a device give the bits of blocks that stay there, in memory for two of them."""

import contextlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mmdit import InTurn, MMDiT, OnDemand, release_modulation
from mmdit.offload import OnStream

CPU = torch.device("cpu")


class Late:
    """Copies at the last moment at which they may be done, where `AtOnce` does so at the first."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def begin(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.waiting += pairs

    def wait(self) -> None:
        for target, source in self.waiting:
            target.copy_(source)
        self.waiting.clear()


def addresses(module: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


@pytest.mark.parametrize("copies", [None, Late()], ids=["at once", "late"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_in_turn_give_the_same_bits_from_two_places(copies, dtype, build, inputs) -> None:
    model = build(dtype=dtype)
    calls = [
        {},
        {"skip_layers": (0,)},
        {"skip_layers": (1,)},
        {"skip_layers": (len(model.joint_blocks) - 1,)},
    ]
    expected = [model(**inputs, **options) for options in calls]
    own = addresses(model)
    away = InTurn(model, CPU, copies)
    places: list[set[int]] = []

    def look(block: nn.Module, _: object) -> None:
        assert not set(addresses(block)) & set(own)
        there = [place for place in away.places if place is not None]
        places.append({place.untyped_storage().data_ptr() for place in there})

    for block in model.joint_blocks:
        block.x_block.register_forward_pre_hook(look)
        block.attention.register_forward_pre_hook(look)
    for options, velocity in zip(calls, expected, strict=True):
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode:
                assert torch.equal(model(**inputs, **options), velocity)
            assert addresses(model) == own
            assert away.places == [None, None]
    assert max(map(len, places)) == 2
    away.undo()


def test_what_is_put_into_a_block_visits_with_it(build, inputs) -> None:
    """Another layer, and weights that were widened meanwhile, which need larger places."""
    model = build()
    away = InTurn(model, CPU, Late())
    model.joint_blocks[1].x_block.mlp.fc1 = nn.Linear(
        *reversed(model.joint_blocks[1].x_block.mlp.fc1.weight.shape)
    ).requires_grad_(False)
    found = model(**inputs)
    model.double()
    wide = model(**inputs)
    away.undo()
    assert torch.equal(model(**inputs), wide)
    assert torch.equal(model.float()(**inputs), found)


def test_blocks_on_demand_come_once_and_leave(build, inputs) -> None:
    model = build()
    expected, own = model(**inputs), addresses(model.joint_blocks)
    away = OnDemand(model, CPU)
    with torch.inference_mode():
        assert torch.equal(model(**inputs), expected)
    there = addresses(model.joint_blocks)
    assert not set(there) & set(own)
    assert torch.equal(model(**inputs), expected)
    assert addresses(model.joint_blocks) == there
    changed = model.joint_blocks[0].x_block.mlp.fc1.weight
    before = changed.data  # kept, or its memory may be given to the copy that is looked for
    changed.data = before.clone()  # as by who widens weights on the CPU
    assert torch.equal(model(**inputs), expected)
    assert changed.data_ptr() not in there
    away.leave()
    assert len(set(addresses(model.joint_blocks)) - set(own)) == 1
    away.undo()
    assert torch.equal(model(**inputs), expected)
    assert not away.home


@pytest.mark.parametrize("kind", [InTurn, OnDemand])
def test_modulation_is_released_from_blocks_that_are_away(kind, build, inputs) -> None:
    model, sigmas = build(), torch.tensor([1.0, 0.3])
    expected = [model(**inputs | {"sigma": sigma}) for sigma in sigmas]
    own = addresses(model)
    away = kind(model, CPU)
    released = release_modulation(model, sigmas, inputs["pooled"])
    found = [model(**inputs | {"sigma": sigma}) for sigma in sigmas]
    released.restore()
    away.undo()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert addresses(model) == own


def test_gradients_are_refused_where_weights_would_be_gone(build, inputs) -> None:
    model: MMDiT = build()
    InTurn(model, CPU)
    velocity = model(**inputs)
    latents = inputs["latents"].clone().requires_grad_()
    with torch.enable_grad(), pytest.raises(RuntimeError, match=r"memory='off', or run under torch\.no_grad"):
        model(**inputs | {"latents": latents})
    assert torch.equal(model(**inputs), velocity)


def test_a_stream_waits_before_it_copies_and_is_waited_for(monkeypatch) -> None:
    told: list[str] = []

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = "side" if isinstance(name, torch.device) else name

        def wait_stream(self, other: "Stream") -> None:
            told.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def on(stream: Stream):
        told.append(f"on {stream.name}")
        yield
        told.append("off")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("main"))
    copies, target = OnStream(torch.device("cuda")), torch.zeros(3)
    copies.begin([(target, torch.ones(3))])
    copies.wait()
    assert told == ["side waits for main", "on side", "off", "main waits for side"]
    assert target.tolist() == [1, 1, 1]
