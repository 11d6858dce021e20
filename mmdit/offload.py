"""Joint blocks that stay in the CPU's memory and visit a card, which then needs memory for fewer of them.

`OnDemand`: all of them come with the first forward, and stay until `leave`.
`InTurn`: each comes while the block before it computes, and is gone after it has run.

Either way the numbers are copied as they are, so a velocity has the bits that it has with all blocks on the
card. What is no block (embedders, the table of positions, the last layer) stays on the card.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from .model import MMDiT

ALIGNMENT = 256
"""In the memory that blocks visit, a tensor begins at a multiple of so many bytes."""


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block a module's weights are on a device; after it they are the very tensors of before."""
    home = {tensor: tensor.data for tensor in tensors_of(module)}
    try:
        for tensor, data in home.items():
            tensor.data = data.to(device)
        yield
    finally:
        for tensor, data in home.items():
            tensor.data = data


class Offloaded(Protocol):
    """Blocks that are kept on the CPU."""

    def leave(self) -> None:
        """Give the card's memory back."""
        ...

    def undo(self) -> None:
        """Let the blocks be where they are, from now on; they are on the CPU then."""
        ...


class OnDemand:
    """All blocks come to a device with the first forward, and stay there until `leave`."""

    def __init__(self, model: MMDiT, device: torch.device) -> None:
        """Let the blocks of a model come when they are asked for.

        Args:
            model: its blocks are on the CPU, and all else on the device.
            device: where it runs.
        """
        self.blocks, self.device = model.joint_blocks, device
        self.home: dict[Tensor, tuple[Tensor, int]] = {}  # what it is on the CPU, and its address there
        self._hook = model.register_forward_pre_hook(lambda *_: self.come())

    def come(self) -> None:
        """Bring what is not there: all blocks, or those of their weights that were changed on the CPU."""
        for tensor in tensors_of(self.blocks):
            is_there = tensor in self.home and self.home[tensor][1] == tensor.data_ptr()
            if tensor.device.type == "cpu" and not is_there:
                own = tensor.data
                tensor.data = own.to(self.device, copy=True)
                self.home[tensor] = own, tensor.data_ptr()

    def leave(self) -> None:
        """Give the card's memory back; weights that were changed there are copied first."""
        for tensor, (own, address) in self.home.items():
            if tensor.data_ptr() == address:
                tensor.data = own
            elif tensor.device.type != "cpu":  # widened or moved by somebody else since
                tensor.data = tensor.data.to("cpu")
        self.home.clear()

    def undo(self) -> None:
        """Let the blocks be on the CPU, from now on."""
        self.leave()
        self._hook.remove()


class Copies(Protocol):
    """How weights get to where they visit."""

    def begin(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy to the first of each pair from the second, behind what the device was asked for so far."""
        ...

    def wait(self) -> None:
        """Let what the device is asked for from now on wait for all copies."""
        ...


class AtOnce:
    """Copies that are done when `begin` returns: for devices without streams."""

    def begin(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """As `Copies`."""
        for target, source in pairs:
            target.copy_(source)

    def wait(self) -> None:
        """Nothing is under way."""


class OnStream:
    """Copies on a stream of their own, beside the one that computes. Python waits for neither."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def begin(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """As `Copies`."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)

    def wait(self) -> None:
        """As `Copies`."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)


class InTurn:
    """Each block comes to a device while the one before it computes, and is gone after it has run.

    There are two places to visit, each as large as the largest block, and the blocks use them by turns:

        computes   block 0   block 1   block 2   ...
        copied     block 1   block 2   block 3   ...     over what block 0, 1, 2 computed with

    A copy begins behind everything that was asked of the device before, so it cannot reach a place whose
    block still computes. The two places are given back when a forward ends.
    """

    def __init__(self, model: MMDiT, device: torch.device, copies: Copies | None = None) -> None:
        """Let the blocks of a model visit a device one after the other.

        Args:
            model: its blocks are on the CPU, and all else on the device.
            device: where it runs. For a CUDA device weights are brought into pinned memory, from which they
                are copied beside the computation.
            copies: how; None is what the device has.
        """
        on_card = device.type == "cuda"
        self.device = device
        self.copies: Copies = copies or (OnStream(device) if on_card else AtOnce())
        self.blocks = list(model.joint_blocks)
        self.places: list[Tensor | None] = [None, None]
        self.coming: tuple[int, dict[Tensor, Tensor]] | None = None  # a block's number, and its copies
        self.home: dict[Tensor, Tensor] = {}  # of the block that is there
        self.turn = 0
        if on_card:
            _pin(model.joint_blocks)
        self._hooks = [model.register_forward_hook(self._end, always_call=True)]
        for number, block in enumerate(self.blocks):
            self._hooks.append(block.register_forward_pre_hook(partial(self._enter, number)))
            self._hooks.append(block.register_forward_hook(self._leave, always_call=True))

    def leave(self) -> None:
        """Give the memory of both places back, behind copies that are under way."""
        self.copies.wait()
        self.coming, self.places = None, [None, None]

    def undo(self) -> None:
        """Let the blocks be on the CPU, from now on."""
        self.leave()
        for hook in self._hooks:
            hook.remove()

    def _enter(self, number: int, block: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Have a block's weights there, and the next one's on their way."""
        if torch.is_grad_enabled() and any(one.requires_grad for one in (*args, *block.parameters())):
            raise RuntimeError(
                "blocks that visit a device in turn are gone when gradients ask for them: load with "
                "memory='off', or run under torch.no_grad()"
            )
        if self.coming is None or self.coming[0] != number:  # none is ahead, or one that was skipped
            self._fetch(number)
        assert self.coming is not None
        _, copies = self.coming
        self.copies.wait()
        self.coming = None
        if number + 1 < len(self.blocks):
            self._fetch(number + 1)
        self.home = {tensor: tensor.data for tensor in copies}
        for tensor, copy in copies.items():
            tensor.data = copy

    def _leave(self, *_: object) -> None:
        """Give a block its own weights back."""
        for tensor, own in self.home.items():
            tensor.data = own
        self.home = {}

    def _end(self, *_: object) -> None:
        self.leave()

    def _fetch(self, number: int) -> None:
        """Begin to copy a block's weights into the place whose turn it is."""
        away = [tensor for tensor in tensors_of(self.blocks[number]) if tensor.device.type == "cpu"]
        self.turn = 1 - self.turn
        place, start = self._place(sum(map(_aligned, away))), 0
        copies: dict[Tensor, Tensor] = {}
        for tensor in away:
            copies[tensor] = place[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            start += _aligned(tensor)
        self.copies.begin([(copy, tensor.data) for tensor, copy in copies.items()])
        self.coming = number, copies

    def _place(self, size: int) -> Tensor:
        """The memory whose turn it is, of so many bytes at least."""
        place = self.places[self.turn]
        if place is None or place.numel() < size:
            self.copies.wait()  # before memory that a copy may still write to is given back
            largest = max(size, *(sum(map(_aligned, tensors_of(block))) for block in self.blocks))
            place = self.places[self.turn] = torch.empty(largest, dtype=torch.uint8, device=self.device)
        return place


def _aligned(tensor: Tensor) -> int:
    """The bytes of a tensor, up to where the next may begin."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def _pin(blocks: nn.Module) -> None:
    """Bring weights into memory that a card reads without the processor's help."""
    for tensor in tensors_of(blocks):
        try:
            tensor.data = tensor.data.pin_memory()
        except RuntimeError:  # there is no more of it: the rest is copied all the same, only slower
            return
