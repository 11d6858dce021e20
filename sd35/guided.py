"""The transformer under guidance, as the velocity(x, sigma) that `flow` follows."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from flow import SkipLayer, guided, skip_layer, zero_start
from flow.guidance import Adjust
from mmdit import MMDiT
from textenc import Encoding

from .errors import SettingsError, check_finite
from .settings import Settings

Branch = Literal["cond", "uncond", "skipped"]
"""With the prompt, with the negative one, and with the prompt but layers left out (skip-layer guidance)."""
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
        adjust: Sequence[Adjust] = (),
        skip: tuple[SkipLayer, Tensor] | None = None,
        still_above: float | None = None,
        **guidance: Any,
    ) -> None:
        """Join a transformer with encoded prompts.

        Args:
            mmdit: the transformer.
            cond: for each sample, its prompt, one in each; a single one serves any number of samples.
            uncond: the negative prompt, of all samples.
            guidance_scale: see `flow.guide`; 1 leaves the negative prompt out, at half the cost.
            batch_size: samples that go through the transformer together.
            adjust: as in `flow.guided`, after skip-layer guidance where there is one.
            skip: skip-layer guidance, and the noise levels of the generation, (steps + 1,).
            still_above: the noise level above which the velocity is zero; see `flow.zero_start`.
            guidance: `combine` and `interval` of `flow.guided`.

        Raises:
            SettingsError: a layer to be skipped that the transformer does not have.
        """
        if skip is not None and (unknown := set(skip[0].layers) - set(range(mmdit.config.depth))):
            raise SettingsError(
                f"layers to skip must be in 0 to {mmdit.config.depth - 1}, got {sorted(unknown)}"
            )
        self.mmdit = mmdit
        self.cond, self.uncond = tuple(cond), uncond
        self.guidance_scale = guidance_scale
        self.batch_size = batch_size
        self.adjust, self.skip, self.still_above = tuple(adjust), skip, still_above
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

        def skipped(x: Tensor, sigma: Tensor) -> Tensor:
            return self._evaluate(x, sigma, cond, samples, "skipped")

        velocity = guided(
            lambda x, sigma: self._evaluate(x, sigma, cond, samples, "cond"),
            lambda x, sigma: self._evaluate(x, sigma, uncond, samples, "uncond"),
            self.guidance_scale,
            together=together if cond[0].context.shape == self.uncond.context.shape else None,
            adjust=self.adjust if self.skip is None else (skip_layer(skipped, *self.skip), *self.adjust),
            **self.guidance,
        )
        return (velocity if self.still_above is None else zero_start(velocity, self.still_above))(x, sigma)

    def _evaluate(
        self, x: Tensor, sigma: Tensor, encodings: list[Encoding], samples: tuple[int, ...], *branches: Branch
    ) -> Tensor:
        """One call of the transformer: the samples once for each branch, in the order of the encodings."""
        each: tuple[Branch, ...] = tuple(branch for branch in branches for _ in samples)
        context = torch.cat([encoding.context for encoding in encodings])
        pooled = torch.cat([encoding.pooled for encoding in encodings])
        times = len(branches)
        level = float(sigma[0])
        skip_layers = self.skip[0].layers if self.skip is not None and branches == ("skipped",) else ()
        with _announced(Evaluation(self.step, level, samples * times, each, tuple(encodings))):
            x, sigma = x.repeat(times, 1, 1, 1), sigma.repeat(times)
            v = self.mmdit(x, sigma, context, pooled, skip_layers=skip_layers)
        dtype = self.mmdit.context_embedder.weight.dtype
        return check_finite(v, "transformer", dtype, step=self.step, sigma=level)


def velocity_of(mmdit: MMDiT, settings: Settings, encodings: Sequence[Encoding]) -> GuidedVelocity:
    """The velocity that a generation of these settings follows.

    Args:
        mmdit: the transformer.
        settings: scale, variant of guidance, noise levels, batch size.
        encodings: of each image, and then of the negative prompt, as `Model.encode_each` gives them.

    Raises:
        SettingsError: guidance that does not fit the model or the number of steps.
    """
    *cond, uncond = encodings
    options = settings.guidance.options(settings.sigmas)
    return GuidedVelocity(
        mmdit, cond, uncond, settings.guidance_scale, batch_size=settings.batch_size, **options
    )


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
