"""The transformer under guidance, as the velocity(x, sigma) that `flow` follows."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from flow import guided
from mmdit import MMDiT
from textenc import Encoding

from .errors import SettingsError, check_finite

Branch = Literal["cond", "uncond"]
Taken = TypeVar("Taken")
"""A step of a solver, or of an inverse."""


@dataclass(frozen=True)
class Evaluation:
    """What one call of the transformer is for: which image and which branch each row of its batch is."""

    step: int  # of the solver
    sigma: float
    samples: tuple[int, ...]  # of each row: the index of its image
    branches: tuple[Branch, ...]  # of each row
    encodings: tuple[Encoding, ...]  # of each row: the prompt that it is drawn from, as a batch of one


_current: ContextVar[Evaluation | None] = ContextVar("sd35.evaluation", default=None)


def current_evaluation() -> Evaluation | None:
    """What the transformer is evaluated for at this moment, for hooks; None outside a guided velocity."""
    return _current.get()


@contextmanager
def _announced(evaluation: Evaluation) -> Iterator[None]:
    token = _current.set(evaluation)
    try:
        yield
    finally:
        _current.reset(token)


class GuidedVelocity:
    """velocity(x, sigma) of a prompt, with classifier-free guidance.

    Samples go through the transformer `batch_size` at a time, with and without the prompt in one call. With
    the default of 1, what a sample gets does not depend on its neighbours, to the last bit: matrix products
    round otherwise in batches of another size. States and guidance are float32, whatever the transformer
    computes in.

    Attributes:
        step: which step of a solver is being taken. Whoever runs the solver sets it, for errors and hooks;
            `stepped` does so.
    """

    def __init__(
        self,
        mmdit: MMDiT,
        cond: Sequence[Encoding],
        uncond: Encoding,
        guidance_scale: float,
        *,
        batch_size: int = 1,
        **guidance: Any,
    ) -> None:
        """Join a transformer with encoded prompts.

        Args:
            mmdit: the transformer.
            cond: for each sample, its prompt, one in each; a single one serves any number of samples.
            uncond: the negative prompt, of all samples.
            guidance_scale: see `flow.guide`; 1 leaves the negative prompt out, at half the cost.
            batch_size: samples that go through the transformer together.
            guidance: `combine`, `adjust` and `interval` of `flow.guided`.
        """
        self.mmdit = mmdit
        self.cond, self.uncond = tuple(cond), uncond
        self.guidance_scale = guidance_scale
        self.batch_size = batch_size
        self.guidance = guidance
        self.step = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The velocity at x (B, 16, h, w) and sigma (B,), like `x`, in float32 or better.

        Raises:
            NonFiniteError: the transformer gave NaN or infinity.
            SettingsError: there are prompts for another number of samples.
        """
        if len(self.cond) not in (1, len(x)):
            raise SettingsError(f"there are {len(self.cond)} prompts for a batch of {len(x)}")
        return torch.cat([self._guided(x[rows], sigma[rows], rows) for rows in self._batches(len(x))])

    def _batches(self, count: int) -> Iterator[slice]:
        """Consecutive samples, `batch_size` at most, whose contexts have one length."""
        start = 0
        for end in range(1, count + 1):
            full = end - start == self.batch_size
            if full or end == count or self._length(end) != self._length(start):
                yield slice(start, end)
                start = end

    def _length(self, sample: int) -> int:
        return self._of(sample).context.shape[1]

    def _of(self, sample: int) -> Encoding:
        return self.cond[sample if len(self.cond) > 1 else 0]

    def _guided(self, x: Tensor, sigma: Tensor, rows: slice) -> Tensor:
        """The velocity of some consecutive samples."""
        samples = tuple(range(rows.start, rows.stop))
        cond = [self._of(sample) for sample in samples]
        uncond = [self.uncond] * len(samples)

        def together(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            v = self._evaluate(x, sigma, [*cond, *uncond], samples, "cond", "uncond")
            return v[: len(x)], v[len(x) :]

        return guided(
            lambda x, sigma: self._evaluate(x, sigma, cond, samples, "cond"),
            lambda x, sigma: self._evaluate(x, sigma, uncond, samples, "uncond"),
            self.guidance_scale,
            together=together if cond[0].context.shape == self.uncond.context.shape else None,
            **self.guidance,
        )(x, sigma)

    def _evaluate(
        self, x: Tensor, sigma: Tensor, encodings: list[Encoding], samples: tuple[int, ...], *branches: Branch
    ) -> Tensor:
        """One call of the transformer: the samples once for each branch, in the order of the encodings."""
        each: tuple[Branch, ...] = tuple(branch for branch in branches for _ in samples)
        context = torch.cat([encoding.context for encoding in encodings])
        pooled = torch.cat([encoding.pooled for encoding in encodings])
        times = len(branches)
        level = float(sigma[0])
        with _announced(Evaluation(self.step, level, samples * times, each, tuple(encodings))):
            v = self.mmdit(x.repeat(times, 1, 1, 1), sigma.repeat(times), context, pooled)
        dtype = self.mmdit.context_embedder.weight.dtype
        return check_finite(v, "transformer", dtype, step=self.step, sigma=level)


def stepped(steps: Iterator[Taken], numbers: Iterable[int], *velocities: GuidedVelocity) -> Iterator[Taken]:
    """Take the steps of a solver or of an inverse, and keep `step` of the velocities that they follow right.

    Args:
        steps: as `flow` makes them; each is computed when it is asked for.
        numbers: of the generation's steps, in the order in which they are taken: rising on the way to data,
            falling on the way back to noise.
        velocities: what the steps evaluate.
    """
    for number in numbers:
        for velocity in velocities:
            velocity.step = number
        yield next(steps)
