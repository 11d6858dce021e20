"""Changing the tensors inside a module while it runs: patching, ablation, steering."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn

from ..evaluation import Branch
from .captures import Captures, Record
from .errors import TapError
from .match import match
from .moment import Moment, Selection
from .parts import Tap, find_taps
from .watch import check_watchable, watching

Change = Callable[[Tensor], Tensor] | Tensor | Captures
"""A function of the tensor, a tensor to put in its place, or what another run had there."""


def patch(
    module: nn.Module,
    changes: Mapping[str, Change],
    *,
    steps: Iterable[int] | None = None,
    branch: Branch | None = None,
) -> AbstractContextManager[None]:
    """Replace tensors that a module computes, while the `with` block runs it.

        with sd35.patch(pipe.mmdit, {"joint_blocks.5.x_block.mlp": torch.zeros_like}):  # ablation
            ...
        with sd35.patch(pipe.mmdit, {"joint_blocks.5.x": lambda x: x + 2 * direction}):  # steering
            ...
        with sd35.capture(pipe.mmdit, "joint_blocks.*.context") as taps:  # patching A into B
            pipe.generate("a red circle")
        with sd35.patch(pipe.mmdit, {"joint_blocks.*.context": taps}):
            pipe.generate("a blue square")
        with sd35.patch(pipe.mmdit, {"joint_blocks.3.attention.logits": lambda logits: logits / 2}):
            ...

    Inside a generation a function is given the rows of one branch at a time, so that it sees the same whether
    or not the branches share a call. Gradients flow through the patch in the caller's grad mode. Where
    patterns of one patch overlap, they apply in order; of nested patches the outer one comes first.
    Only what the block's own thread runs is changed.

    Args:
        module: the transformer, a text encoder, the autoencoder, or any part of one.
        changes: glob of taps to what is put there. A function takes the tensor and returns a new one of
            the same shape, dtype and device. `Captures` puts back what was captured under the same name, for
            the same step, branch and images, in the dtype and on the device of what it replaces; outside a
            generation, call by call, or the one call at every one.
        steps: at which of the solver's steps, inside a generation; None is all.
        branch: on which branch of the guidance, inside a generation; None is both.

    Raises:
        TapError: a pattern matches nothing, a step or branch does not exist, captures lack a tap, or the
            module is compiled. Inside the block: a change of another shape, dtype or device, or captures
            without the current step. At the end of the block: a pattern of which nothing ran, or a step that
            never came.
    """
    check_watchable(module)
    taps = find_taps(module)
    chosen = {pattern: match(taps, [pattern])[pattern] for pattern in changes}
    if not chosen:
        raise TapError("no change was asked for: give {pattern: function}")
    by_name: dict[str, list[tuple[str, _Replace]]] = {}
    for pattern, names in chosen.items():
        for name in names:
            by_name.setdefault(name, []).append((pattern, _replacing(name, changes[pattern])))
    return _patching([taps[name] for name in by_name], by_name, Selection(steps, branch), list(chosen))


_Replace = Callable[[Tensor, Moment], Tensor]


@contextmanager
def _patching(
    taps: list[Tap],
    changes: dict[str, list[tuple[str, _Replace]]],
    selection: Selection,
    patterns: list[str],
) -> Iterator[None]:
    used: set[str] = set()

    def visit(tap: Tap, tensor: Tensor) -> Tensor:
        for moment in selection.moments():
            for pattern, replace in changes[tap.name]:
                old = moment.of(tensor)
                new = replace(old, moment)
                _check_fits(tap.name, old, new)
                tensor = moment.put(tensor, new)
                used.add(pattern)
        return tensor

    with watching(taps, visit):
        yield
    selection.check_ran(pattern for pattern in patterns if pattern not in used)


def _replacing(name: str, change: Change) -> _Replace:
    """A change as a function of a tensor and of when it is computed."""
    if isinstance(change, Captures):
        return _Playback(change.of(name))
    if isinstance(change, Tensor):
        return lambda tensor, moment: change
    return lambda tensor, moment: change(tensor)


class _Playback:
    """Gives back, call by call, what was captured of one tap."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.step: int | None = None  # of the last call
        self.count: dict[tuple[Branch | None, tuple[int, ...] | None], int] = {}  # of calls within that step

    def __call__(self, tensor: Tensor, moment: Moment) -> Tensor:
        """What was captured when this moment came in the other run.

        A solver may call the model several times in a step; calls are matched in their order within it.
        """
        if moment.step != self.step:
            self.step, self.count = moment.step, {}
        key = (moment.branch, moment.samples)
        same = [r for r in self.records if (r.step, r.branch, r.samples) == (moment.step, *key)]
        index = self.count.get(key, 0)
        self.count[key] = index + 1
        index = 0 if len(same) == 1 else index
        if index >= len(same):
            raise TapError(self._missing(moment, index, len(same)))
        return same[index].tensor.to(tensor.device, tensor.dtype)

    def _missing(self, moment: Moment, index: int, found: int) -> str:
        name = self.records[0].tap
        if found:
            return f"{name} was captured in {found} calls, and this is call {index + 1}"
        if moment.step is None:
            return f"{name} was captured inside a generation, and is put back outside one"
        there = list(dict.fromkeys(f"{r.step} {r.branch} {r.samples}" for r in self.records))
        return (
            f"{name} was not captured for step, branch and images {moment.step} {moment.branch} "
            f"{moment.samples}, only for {', '.join(there[:6])}{', ...' if len(there) > 6 else ''}: "
            "narrow the patch with `steps` and `branch`, or capture more"
        )


def _check_fits(name: str, old: Tensor, new: object) -> None:
    if not isinstance(new, Tensor):
        raise TapError(f"the change of {name} must return a tensor, got {type(new).__name__}")
    if (new.shape, new.dtype, new.device) != (old.shape, old.dtype, old.device):
        raise TapError(f"the change of {name} must return {_kind(old)}, as it was given, got {_kind(new)}")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
