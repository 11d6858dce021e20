"""The transformer under guidance, as the velocity(x, sigma) that `flow` follows.

    prompts ─ encodings ─┐
    x, sigma ────────────┴─▶ conditions ─▶ transformer ─▶ cond, uncond ─ guidance ─▶ velocity

A call waits for nothing on the device: what it needs to know of sigma on the host is known before, and
whether the states are finite is looked at once, when a task ends.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from flow import SkipLayer, Velocity, guided, skip_layer, zero_start
from flow.guidance import Adjust
from mmdit import MMDiT
from textenc import Encoding

from .conditions import Call, Condition
from .device import full_float32
from .errors import SettingsError
from .evaluation import Branch, Evaluation, announced
from .settings import Settings


@dataclass(frozen=True)
class Rows:
    """The texts of one batch of the transformer, put together once for all steps."""

    context: Tensor
    pooled: Tensor
    samples: tuple[int, ...]
    branches: tuple[Branch, ...]
    encodings: tuple[Encoding, ...]


class GuidedVelocity:
    """velocity(x, sigma) of a prompt, with classifier-free guidance.

    Samples go through the transformer `batch_size` at a time, with and without the prompt in one call. With
    the default of 1, what a sample gets does not depend on its neighbours, to the last bit: matrix products
    round otherwise in batches of another size. States and guidance are float32, whatever the transformer
    computes in.
    """

    def __init__(
        self,
        mmdit: MMDiT,
        cond: Sequence[Encoding],
        uncond: Encoding,
        guidance_scale: float,
        *,
        sigmas: Tensor | None = None,
        batch_size: int = 1,
        conditions: Sequence[Condition] = (),
        adjust: Sequence[Adjust] = (),
        skip: SkipLayer | None = None,
        first: int = 0,
        still_above: float | None = None,
        cache: Callable[[Velocity], Velocity] | None = None,
        **guidance: Any,
    ) -> None:
        """Join a transformer with encoded prompts.

        Args:
            mmdit: the transformer.
            cond: for each sample, its prompt, one in each; a single one serves any number of samples.
            uncond: the negative prompt, of all samples.
            guidance_scale: see `flow.guide`; 1 leaves the negative prompt out, at half the cost.
            sigmas: the noise levels of the generation, (steps + 1,), falling. Hooks are told the step, which
                is found from sigma; without them there are no steps to tell.
            batch_size: samples that go through the transformer together.
            conditions: what else the velocity is given; see `Condition`.
            adjust: as in `flow.guided`, after skip-layer guidance where there is one.
            skip: skip-layer guidance; its window is a part of `sigmas`.
            first: the step that is run first, in image to image: that window counts from it.
            still_above: the noise level above which the velocity is zero; see `flow.zero_start`.
            cache: put before the guided velocity of each batch of the transformer; see `sd35.cache`.
            guidance: `combine` and `interval` of `flow.guided`.

        Raises:
            SettingsError: a layer to be skipped that the transformer does not have, or skip-layer guidance
                without `sigmas`.
        """
        if skip is not None and (unknown := set(skip.layers) - set(range(mmdit.config.depth))):
            raise SettingsError(
                f"skip-layer guidance leaves out blocks {sorted(unknown)}, and this transformer has 0 to "
                f"{mmdit.config.depth - 1}: name some of those (skipped, on the command line --skipped)"
            )
        if skip is not None and sigmas is None:
            raise SettingsError("skip-layer guidance acts in a part of the steps: give sigmas, their table")
        self.mmdit = mmdit
        self.cond, self.uncond = tuple(cond), uncond
        self.guidance_scale, self.batch_size = guidance_scale, batch_size
        self.sigmas, self.conditions = sigmas, tuple(conditions)
        self.adjust, self.skip, self.still_above = tuple(adjust), skip, still_above
        self.first, self.cache = first, cache
        self.guidance = guidance
        self._levels = None if sigmas is None else sorted(sigmas.tolist()[:-1])
        self._made: dict[int, list[tuple[slice, Velocity]]] = {}
        self._numbers: tuple[int, ...] | None = None  # of the samples in the batch that this is a part of
        self._these: dict[tuple[int, ...], GuidedVelocity] = {}

    def __repr__(self) -> str:
        prompts = ", ".join(repr(prompt.text) for one in self.cond for prompt in one.prompts)
        return f"GuidedVelocity({prompts}; guidance scale {self.guidance_scale:g})"

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The velocity at x (B, 16, h, w) and sigma, one for all samples or (B,), in float32 or better.

        Raises:
            SettingsError: there are prompts for another number of samples, or sigma leaves [0, 1].
        """
        if len(self.cond) not in (1, len(x)):
            raise SettingsError(f"there are {len(self.cond)} prompts for a batch of {len(x)}")
        level = self._level(x, sigma)
        with full_float32():
            return torch.cat([velocity(x[rows], level[rows]) for rows, velocity in self._parts(len(x))])

    def part(self, samples: Sequence[int]) -> "GuidedVelocity":
        """The velocity of some samples of the batch alone, under the numbers that they have in it.

        What an inverse needs to stop each sample by itself; see `flow.inverse.exact`.
        """
        key = tuple(samples)
        if key not in self._these:
            part = copy(self)
            part.cond = tuple(self._of(sample) for sample in key)
            part._numbers, part._made, part._these = key, {}, {}
            self._these[key] = part
        return self._these[key]

    def pooled(self, count: int) -> list[Tensor]:
        """The pooled text of every batch that the transformer is run on for so many samples, each once."""
        found: list[Tensor] = []
        for rows in self._batches(count):
            cond = [self._of(sample) for sample in range(rows.start, rows.stop)]
            uncond = [self.uncond] * len(cond)
            kinds = [cond] if self.guidance_scale == 1 else [cond, uncond, cond + uncond]
            for kind in kinds:
                pooled = torch.cat([one.pooled for one in kind])
                if not any(torch.equal(pooled, other) for other in found):
                    found.append(pooled)
        return found

    def _level(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Sigma as (B,) on the device of x.

        It is checked where it is known without waiting for the device, and where nobody has checked a table.
        """
        level = torch.as_tensor(sigma, dtype=torch.promote_types(x.dtype, torch.float32))
        if level.ndim > 1 or (level.ndim == 1 and len(level) not in (1, len(x))):
            raise SettingsError(
                f"sigma must be a number or (B,) = ({len(x)},) noise levels, got {tuple(level.shape)}"
            )
        if level.device.type == "cpu" or self.sigmas is None:
            wrong = level[~((level >= 0) & (level <= 1))]
            if len(wrong.flatten()):
                raise SettingsError(
                    f"sigma is the noise level, in [0, 1], got {float(wrong.flatten()[0]):g}: "
                    "a timestep is 1000 times it"
                )
        return level.to(x.device, non_blocking=True).expand(len(x))

    def _parts(self, count: int) -> list[tuple[slice, Velocity]]:
        """The samples by batches of the transformer, and the guided velocity of each; made once."""
        if count not in self._made:
            self._made[count] = [(rows, self._guided(rows)) for rows in self._batches(count)]
        return self._made[count]

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

    def _guided(self, rows: slice) -> Velocity:
        """The guided velocity of some consecutive samples."""

        def branch(*names: Branch) -> Velocity:
            texts = cache(lambda: self._texts(rows, names))  # once, and where they are needed at all
            return lambda x, sigma: self._evaluate(texts(), x, sigma)

        one_shape = self._of(rows.start).context.shape == self.uncond.context.shape
        both = branch("cond", "uncond") if one_shape and self.guidance_scale != 1 else None
        adjust = self.adjust
        if self.skip is not None and self.sigmas is not None:
            adjust = (skip_layer(branch("skipped"), self.skip, self.sigmas, self.first), *adjust)
        velocity = guided(
            branch("cond"),
            branch("uncond"),
            self.guidance_scale,
            together=None if both is None else lambda x, sigma: _halves(both(x, sigma)),
            adjust=adjust,
            **self.guidance,
        )
        if self.still_above is not None:
            velocity = zero_start(velocity, self.still_above)
        return velocity if self.cache is None else self.cache(velocity)

    def _evaluate(self, texts: Rows, x: Tensor, sigma: Tensor) -> Tensor:
        """One call of the transformer: the samples once for each branch."""
        times = len(texts.samples) // len(x)
        evaluation = Evaluation(sigma[0], self._levels, texts.samples, texts.branches, texts.encodings)
        skip_layers = self.skip.layers if self.skip is not None and "skipped" in texts.branches else ()
        latents, levels = x.repeat(times, 1, 1, 1), sigma.repeat(times)
        call = Call(latents, levels, texts.context, texts.pooled, evaluation, skip_layers)
        return self._run(call, self.conditions)

    def _run(self, call: Call, conditions: Sequence[Condition]) -> Tensor:
        if conditions:
            first, *others = conditions
            return first(call, lambda changed: self._run(changed, others))
        with announced(call.evaluation):
            return self.mmdit(
                call.latents,
                call.sigma,
                call.context,
                call.pooled,
                residuals=call.residuals,
                skip_layers=call.skip_layers,
            )

    def _texts(self, rows: slice, branches: tuple[Branch, ...]) -> Rows:
        """What the rows of a batch are told by their texts, in the order of the branches."""
        samples = tuple(range(rows.start, rows.stop))
        numbers = samples if self._numbers is None else self._numbers[rows]
        encodings = tuple(
            self.uncond if branch == "uncond" else self._of(sample)
            for branch in branches
            for sample in samples
        )
        return Rows(
            torch.cat([one.context for one in encodings]),
            torch.cat([one.pooled for one in encodings]),
            numbers * len(branches),
            tuple(branch for branch in branches for _ in samples),
            encodings,
        )


def _halves(v: Tensor) -> tuple[Tensor, Tensor]:
    """The velocities with and without the prompt, of one batch of both."""
    return v[: len(v) // 2], v[len(v) // 2 :]


def velocity_of(
    mmdit: MMDiT,
    settings: Settings,
    encodings: Sequence[Encoding],
    conditions: Sequence[Condition] = (),
    cache: Callable[[Velocity], Velocity] | None = None,
) -> GuidedVelocity:
    """The velocity that a generation of these settings follows.

    Args:
        mmdit: the transformer.
        settings: scale, variant of guidance, noise levels, batch size.
        encodings: of each image, and then of the negative prompt, as `Model.encode_each` gives them.
        conditions: what else it is given.
        cache: as in `GuidedVelocity`.

    Raises:
        SettingsError: guidance that does not fit the model or the number of steps.
    """
    *cond, uncond = encodings
    sigmas = settings.sigmas
    return GuidedVelocity(
        mmdit,
        cond,
        uncond,
        settings.guidance_scale,
        sigmas=sigmas,
        batch_size=settings.batch_size,
        conditions=conditions,
        first=settings.left_out,
        cache=cache,
        **settings.guidance.options(sigmas),
    )
