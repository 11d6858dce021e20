"""Attaching to a module's submodules for the length of a `with` block."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from .errors import TapError
from .parts import Tap, part_of, with_part

Visit = Callable[[Tap, Tensor], Tensor | None]
"""Sees one tensor when it is computed; what it returns, if anything, takes the tensor's place."""


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
    with ExitStack() as stack:
        for module, own in by_module.items():
            stack.callback(module.register_forward_hook(_hook(own, visit)).remove)
        yield


def _hook(taps: list[Tap], visit: Visit) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        for tap in taps:
            tensor = part_of(output, tap.part)
            changed = None if tensor is None else visit(tap, tensor)
            if changed is not None:
                output = with_part(output, tap.part, changed)
        return output

    return hook
