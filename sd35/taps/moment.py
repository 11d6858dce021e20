"""When a module runs: for which step of a generation, and for which branch of the guidance."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from textenc import Encoding

from ..evaluation import Branch, Evaluation, current_evaluation
from .errors import TapError
from .match import near

BRANCHES: tuple[Branch, ...] = get_args(Branch)


@dataclass(frozen=True)
class Moment:
    """One branch of one call of the transformer; fields are None where no pipeline says what it is for."""

    step: int | None = None  # of the solver
    sigma: float | None = None  # the noise level
    branch: Branch | None = None
    samples: tuple[int, ...] | None = None  # which image of the generation each row is
    rows: tuple[int, ...] | None = None  # which rows of the call's batch belong to the branch
    encodings: tuple[Encoding, ...] | None = None  # of each row: the prompt that it is drawn from

    def of(self, tensor: Tensor) -> Tensor:
        """The rows of this branch; `tensor` itself where they are all of it."""
        return tensor if self.rows is None or len(self.rows) == len(tensor) else tensor[list(self.rows)]

    def put(self, tensor: Tensor, value: Tensor) -> Tensor:
        """`tensor` with this branch's rows replaced, as a new tensor; gradients reach both."""
        if self.rows is None or len(self.rows) == len(tensor):
            return value
        changed = tensor.clone()
        changed[list(self.rows)] = value
        return changed


class Selection:
    """Which moments are wanted, and which came.

    Args:
        steps: numbers of the solver's steps; None for all.
        branch: "cond", "uncond" or "skipped"; None for all.

    Raises:
        TapError: a step that is no whole number from 0 on, no step at all, or an unknown branch.
    """

    def __init__(self, steps: Iterable[int] | None, branch: Branch | None) -> None:
        self.steps = None if steps is None else frozenset(steps)
        self.branch = branch
        self.seen: set[int] = set()
        if self.steps is not None and (
            not self.steps or any(type(s) is not int or s < 0 for s in self.steps)
        ):
            raise TapError(
                f"steps must be whole numbers from 0 on, and at least one; got {sorted(self.steps, key=str)}"
            )
        if branch is not None and branch not in BRANCHES:
            raise TapError(
                f"branch must be one of {', '.join(BRANCHES)}; got {branch!r}" + near(branch, BRANCHES)
            )

    def moments(self) -> list[Moment]:
        """The wanted moments among those that the model is running for now: one for each branch.

        Raises:
            TapError: a step or branch is wanted, and the model is run outside a guided velocity.
        """
        evaluation = current_evaluation()
        if evaluation is None and self.steps is None and self.branch is None:
            return [Moment()]
        if evaluation is None or (self.steps is not None and evaluation.step is None):
            raise TapError(
                "steps and branches are those of a generation: run the transformer through pipe.generate, or "
                "through pipe.velocity with sigmas=, the noise levels of the steps; or leave `steps` and "
                "`branch` out"
            )
        if evaluation.step is not None:
            self.seen.add(evaluation.step)
        if self.steps is not None and evaluation.step not in self.steps:
            return []
        return [
            _moment(evaluation, branch)
            for branch in BRANCHES
            if branch in evaluation.branches and self.branch in (None, branch)
        ]

    def check_ran(self, unused: Iterable[str]) -> None:
        """Refuse to end quietly when something that was asked for never happened.

        Args:
            unused: the patterns of which no tap ran at a wanted moment.

        Raises:
            TapError: there is such a pattern, or a step did not come.
        """
        missed = sorted((self.steps or frozenset()) - self.seen)
        if missed and self.seen:
            raise TapError(
                f"steps {missed} never came: the model ran for steps {min(self.seen)} to {max(self.seen)}"
            )
        unused = list(unused)
        if unused:
            when = f" for the {self.branch} branch" if self.branch and self.seen else ""
            raise TapError(
                f"nothing that {', '.join(map(repr, unused))} matches was run{when} inside the block, by the "
                "thread that opened it"
            )


def _moment(evaluation: Evaluation, branch: Branch) -> Moment:
    """One branch of an evaluation."""
    rows = tuple(i for i, each in enumerate(evaluation.branches) if each == branch)
    samples = tuple(evaluation.samples[i] for i in rows)
    encodings = tuple(evaluation.encodings[i] for i in rows)
    return Moment(evaluation.step, evaluation.sigma, branch, samples, rows, encodings)
