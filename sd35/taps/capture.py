"""Watching the tensors inside a module."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..evaluation import Branch
from .captures import Captures, Record
from .errors import BudgetError, TapError
from .match import Pattern, match
from .moment import Moment, Selection
from .parts import Tap, find_taps
from .sizes import size
from .watch import check_watchable, watching

Reduce = Callable[[Tensor], Tensor]


def capture(
    module: nn.Module,
    *patterns: Pattern,
    reduce: Reduce | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    budget: int | None = None,
    steps: Iterable[int] | None = None,
    branch: Branch | None = None,
) -> AbstractContextManager[Captures]:
    """Keep tensors that a module computes, while the `with` block runs it.

        with sd35.capture(pipe.mmdit, "joint_blocks.*.x", steps=[0], branch="cond") as taps:
            pipe.generate("a red circle")
        taps["joint_blocks.0.x"]  # (batch, image_token, channel)

    The model computes what it computes unwatched, to the last bit. What is kept is the tensor itself, with
    its gradient where one is recorded, or a copy where the tensor is a view of a larger one that would stay
    in memory with it. Blocks nest, with each other and with `patch`; an inner one sees what an outer `patch`
    put in place, and two captures of one tap each keep it. A block sees what its own thread runs
    (`contextvars.copy_context().run` takes it into another one).

    Args:
        module: the transformer, a text encoder, the autoencoder, or any part of one.
        patterns: globs of taps, lists of globs or predicates on names; see `match`. `sd35.list_taps(module)`
            and `sd35 inspect SOURCE --taps` list what there is.
        reduce: applied to each tensor before it is kept, such as `lambda x: x.norm(dim=-1)`. Inside a
            generation it is given one branch at a time.
        device: where to keep it; None leaves it where it is.
        dtype: what to keep it in; None leaves it as it is.
        budget: how many bytes may be kept; None sets no limit.
        steps: which of the solver's steps, inside a generation; None keeps all.
        branch: which branch of the guidance, inside a generation; None keeps both, as records of their own.

    Returns:
        A context manager whose target fills up while the block runs.

    Raises:
        TapError: a pattern matches nothing, a step or branch does not exist, or the module is compiled. At
            the end of the block: a pattern of which nothing ran, or a step that never came.
        BudgetError: inside the block, before a tensor beyond the budget is kept.
    """
    check_watchable(module)
    taps = find_taps(module)
    chosen = match(taps, patterns)
    if budget is not None and budget <= 0:
        raise TapError(f"budget must be a positive number of bytes, got {budget}")
    names = list(dict.fromkeys(name for found in chosen.values() for name in found))
    recorder = _Recorder(Selection(steps, branch), len(names), reduce, device, dtype, budget)
    return _capturing(recorder, chosen, [taps[name] for name in names])


@contextmanager
def _capturing(recorder: "_Recorder", chosen: dict[str, list[str]], taps: list[Tap]) -> Iterator[Captures]:
    with watching(taps, recorder.visit):
        yield recorder.captures
    kept = set(recorder.captures)
    recorder.selection.check_ran(label for label, found in chosen.items() if not kept.intersection(found))


@dataclass
class _Recorder:
    """Puts tensors into `captures`."""

    selection: Selection
    number: int  # of taps, for the estimate in a message
    reduce: Reduce | None
    device: torch.device | str | None
    dtype: torch.dtype | None
    budget: int | None
    captures: Captures = field(default_factory=Captures)
    nbytes: int = 0

    def visit(self, tap: Tap, tensor: Tensor) -> None:
        """Keep what is wanted of one output."""
        for moment in self.selection.moments():
            self._keep(tap, moment, moment.of(tensor))

    def _keep(self, tap: Tap, moment: Moment, tensor: Tensor) -> None:
        dims = None if self.reduce else tap.dims
        value = self.reduce(tensor) if self.reduce else tensor
        if not isinstance(value, Tensor):
            raise TapError(f"reduce must return a tensor, got {type(value).__name__} for {tap.name}")
        dtype = self.dtype or value.dtype
        self._check_budget(tap, value.numel() * dtype.itemsize)
        value = value.to(device=self.device or value.device, dtype=dtype)
        if value.untyped_storage().nbytes() > value.numel() * value.itemsize:
            value = value.clone(memory_format=torch.contiguous_format)
        self.nbytes += value.numel() * value.itemsize
        self.captures.records.append(
            Record(tap.name, value, dims, moment.step, moment.sigma, moment.branch, moment.samples)
        )

    def _check_budget(self, tap: Tap, nbytes: int) -> None:
        if self.budget is None or self.nbytes + nbytes <= self.budget:
            return
        kept, seen = len(self.captures.records), len(self.captures) + (tap.name not in self.captures)
        advice = "ask for fewer taps or steps, reduce before keeping (reduce=, dtype=), or raise the budget"
        if kept < seen:  # the first call: what the other taps take is not known yet
            all_taps = size((self.nbytes + nbytes) * self.number // seen)
            advice = f"all {self.number} taps take about {all_taps} a call; {advice}"
        raise BudgetError(
            f"keeping {tap.name} beside {kept} other tensors takes {size(self.nbytes + nbytes)}, "
            f"and the budget is {size(self.budget)}: {advice}"
        )
