"""Attaching to a module's submodules for the length of a `with` block.

A block belongs to the thread (or the context of `contextvars`) that opened it: of what others run on the same
modules meanwhile it sees nothing, and it changes nothing. Modules have one hook each, however many blocks are
open, which calls those of the context that runs it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import TapError
from .logits import LOGITS, attend, logits_of
from .parts import Tap

Visit = Callable[[Tap, Tensor], Tensor | None]
"""Sees one tensor when it is computed; what it returns, if anything, takes the tensor's place."""


@dataclass
class Call:
    """One call of a module that is watched: what it was given, and what it gives."""

    args: tuple[Any, ...]
    output: Any
    logits: Tensor | None = None
    """Of an attention: what was put in their place; None while they follow from its queries and keys."""

    def get(self, part: int | str | None) -> Tensor | None:
        """The tensor that a tap stands for; None where the module left it out."""
        if part == LOGITS:
            return logits_of(*self.args[:2]) if self.logits is None else self.logits
        return self.output if part is None else self.output[part]

    def put(self, part: int | str | None, value: Tensor) -> None:
        """Replace it."""
        if part == LOGITS:
            self.logits, self.output = value, attend(value, self.args[2])
        elif isinstance(part, int):
            changed = [*self.output[:part], value, *self.output[part + 1 :]]
            named = hasattr(self.output, "_fields")
            self.output = type(self.output)(*changed) if named else tuple(changed)
        else:
            self.output = value


def check_watchable(root: object) -> None:
    """Refuse what is not run module by module.

    Raises:
        TapError: not a module, or one that torch.compile has taken over, whole or in part.
    """
    if not isinstance(root, nn.Module):
        raise TapError(f"expected one of the modules, such as pipe.mmdit, got {type(root).__name__}")
    for path, module in root.named_modules():
        compiled_in_place = getattr(module, "_compiled_call_impl", None) is not None
        if compiled_in_place or (hasattr(module, "_orig_mod") and "dynamo" in type(module).__module__):
            where = f"{path or 'the module'} is compiled"
            raise TapError(
                f"{where}: torch.compile makes one program of it, in which parts have no outputs of their "
                "own; use the module as it was before (`compiled._orig_mod`, or load it anew)"
            )


@contextmanager
def watching(taps: Iterable[Tap], visit: Visit) -> Iterator[None]:
    """Have `visit` called with the tensor of each tap, whenever its module runs inside the block.

    Blocks nest: the outer one's visit comes first, and the inner one sees what the outer one put in place.
    However the block ends, nothing stays attached.
    """
    by_module: dict[nn.Module, list[Tap]] = {}
    for tap in taps:
        by_module.setdefault(tap.module, []).append(tap)
    with watching_calls({module: partial(_visit, own, visit) for module, own in by_module.items()}):
        yield


def _visit(taps: list[Tap], visit: Visit, call: Call) -> None:
    for tap in taps:
        tensor = call.get(tap.part)
        changed = None if tensor is None else visit(tap, tensor)
        if changed is not None and changed is not tensor:
            call.put(tap.part, changed)


@dataclass(eq=False)
class _Block:
    """A `with` block that is open: what it does with the calls of each module."""

    seen: Mapping[nn.Module, Callable[[Call], None]]
    is_open: bool = True


_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("sd35.taps", default=())
_hooks: WeakKeyDictionary[nn.Module, tuple[int, RemovableHandle]] = WeakKeyDictionary()
"""Modules that are watched, in any thread: the number of open blocks, and the hook that they share."""
_lock = Lock()


@contextmanager
def watching_calls(seen: Mapping[nn.Module, Callable[[Call], None]]) -> Iterator[None]:
    """Have functions called with each call of their modules, as `watching` does with tensors."""
    block = _Block(seen)
    with ExitStack() as stack:
        for module in seen:
            _attach(module)
            stack.callback(_detach, module)
        _blocks.set((*_blocks.get(), block))
        stack.callback(_close, block)
        yield


def _close(block: _Block) -> None:
    # Without ContextVar.reset: generators may close blocks in another order than they were opened in.
    block.is_open = False
    _blocks.set(tuple(one for one in _blocks.get() if one.is_open))


def _attach(module: nn.Module) -> None:
    with _lock:
        count, handle = _hooks.get(module) or (0, module.register_forward_hook(_called))
        _hooks[module] = (count + 1, handle)


def _detach(module: nn.Module) -> None:
    with _lock:
        count, handle = _hooks[module]
        if count > 1:
            _hooks[module] = (count - 1, handle)
        else:
            del _hooks[module]
            handle.remove()


def _called(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Let the blocks of this context see a call, the outer ones first."""
    call = Call(args, output)
    for block in _blocks.get():
        if block.is_open and module in block.seen:
            block.seen[module](call)
    return call.output
