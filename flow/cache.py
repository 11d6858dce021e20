"""A velocity that is not computed at every step: where little has changed, the last ones are used again.

EasyCache (arXiv:2507.02860) in the terms of a flow. Between computed evaluations it measures how much the
velocity changes for a change of the state, k = |v - v_last| / |x - x_last|, and adds up from step to step
what is expected since the last one, E ← E + k |x - x_prev| / |v_last|. While E stays below a threshold the
velocity is not computed. A fixed choice of steps (BudCache, arXiv:2606.13496; `flow.budget` finds one) needs
no such estimate. Either way a call waits for the device, to know the noise level.

Between computed steps the velocity follows the line in σ through the last two, which is nearer than the last
velocity as it was, or EasyCache's form, while no gap is long: docs/caches.md has figures and their command.

What is cached is the guided velocity as a whole: the branches of guidance are computed or left out together,
with whatever conditions add to them, and their difference is never one of an old and a new half.
"""

import math
from collections.abc import Collection, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import FlowError
from .solvers.base import Velocity

Reuse = Literal["last", "line", "curve", "residual"]
POINTS = {"last": 1, "line": 2, "curve": 3, "residual": 1}
"""Computed velocities that each way of using them again is drawn through."""


def inside(level: float, windows: Sequence[tuple[float, float]]) -> tuple[bool, ...]:
    """In which windows a noise level lies, ends included: of which kind the velocity is there."""
    return tuple(low <= level <= high for low, high in windows)


class Cached:
    """velocity(x, sigma) along a falling table, computed where it is expected to have changed.

    It depends on where it was called before and is no function of x and σ: it has no inverse, and refuses a
    way up. A call at the table's first level begins anew, and so does a batch of another shape.

    Attributes:
        computed: of each call since the beginning, whether the velocity was computed.
    """

    def __init__(
        self,
        velocity: Velocity,
        sigmas: Tensor,
        *,
        threshold: float = 0.05,
        first: int = 4,
        reuse: Reuse = "line",
        steps: Collection[int] | None = None,
        windows: Sequence[tuple[float, float]] = (),
    ) -> None:
        """Put a cache before a velocity.

        Args:
            velocity: guided.
            sigmas: the levels of the steps that will be taken, falling, (steps + 1,).
            threshold: of the expected relative change; 0 computes always. The sample that is expected to have
                changed most decides for its batch.
            first: levels at the start at which it is computed in any case, as at the last.
            reuse: "last" is the last computed velocity; "line" the line in σ through the last two, and
                "curve" the parabola through three, or what there is; "residual" is EasyCache's own,
                x + (v_last - x_last), which adds what x moved.
            steps: those that are computed, counted from 0, in place of what threshold and first decide. A
                step that is the first inside or outside a window is computed as well.
            windows: noise levels, ends included, inside of which the velocity is of another kind: guided, or
                steered. What was computed on one side of an end is not used on the other.

        Raises:
            FlowError: levels that do not fall, an option out of range, or steps without the first.
        """
        if len(sigmas) < 2 or not bool((sigmas.diff() < 0).all()):
            raise FlowError("a cache is of a way down: sigmas must fall")
        if not 0 <= threshold < float("inf") or first < 1:
            raise FlowError(f"threshold must be at least 0 and first at least 1, got {threshold} and {first}")
        if reuse not in get_args(Reuse):
            raise FlowError(f"reuse must be one of {', '.join(get_args(Reuse))}; got {reuse!r}")
        count = len(sigmas) - 1
        if steps is not None and not (0 in steps and set(steps) <= set(range(count))):
            raise FlowError(f"steps must be of 0 to {count - 1}, 0 among them; got {sorted(steps)}")
        self.velocity, self.threshold, self.reuse = velocity, threshold, reuse
        self.steps, self.windows = None if steps is None else frozenset(steps), tuple(windows)
        self._levels: list[float] = sigmas.tolist()
        self._warm = self._levels[min(first, count)]
        self._begin()

    def _begin(self) -> None:
        self.computed: list[bool] = []
        self._past: list[tuple[float, Tensor, Tensor]] = []  # of those computed: level, x, v
        self._before: Tensor | None = None  # x of the last call
        self._level = float("inf")
        self._kind: tuple[bool, ...] = ()  # inside which windows the last call was
        self._rate = self._expected = torch.zeros(())

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The velocity, computed or not.

        Raises:
            FlowError: sigma rises, or differs between samples.
        """
        level = float(sigma.reshape(-1)[0])
        if bool((sigma != level).any()):
            raise FlowError("a cache needs one noise level for the whole batch")
        upward = level > self._level
        other = self._before is not None and self._before.shape != x.shape
        if other or (upward and level >= self._levels[0]):
            self._begin()
        elif upward:
            raise FlowError("a cached velocity is no function of x and sigma: it cannot be followed upward")
        kind = inside(level, self.windows)
        if kind != self._kind:
            self._past, self._kind = [], kind
        hit = self._is_hit(x, level)
        v = self._again(x, level) if hit else self._compute(x, sigma, level)
        self.computed.append(not hit)
        self._before, self._level = x, level
        return v

    def _is_hit(self, x: Tensor, level: float) -> bool:
        if self.steps is not None:
            step = sum(level <= other for other in self._levels) - 1
            return bool(self._past) and step not in self.steps
        if len(self._past) < 2 or level > self._warm or level <= self._levels[-2]:
            return False
        assert self._before is not None
        self._expected = self._expected + self._rate * _size(x - self._before) / _size(self._past[-1][2])
        return float(self._expected.max()) < self.threshold

    def _compute(self, x: Tensor, sigma: Tensor, level: float) -> Tensor:
        v = self.velocity(x, sigma)
        if self._past:
            _, x_last, v_last = self._past[-1]
            moved = _size(x - x_last)
            self._rate = torch.where(moved > 0, _size(v - v_last) / moved, self._rate)
        self._past = [*(one for one in self._past[-2:] if one[0] != level), (level, x, v)]
        self._expected = torch.zeros_like(_size(x))
        return v

    def _again(self, x: Tensor, level: float) -> Tensor:
        if self.reuse == "residual":
            _, x_last, v_last = self._past[-1]
            return x + (v_last - x_last)
        points = self._past[-POINTS[self.reuse] :]
        weights = [
            math.prod((level - other) / (own - other) for other, _, _ in points if other != own)
            for own, _, _ in points
        ]  # Lagrange's
        return torch.stack([weight * v for weight, (_, _, v) in zip(weights, points, strict=True)]).sum(0)


def _size(x: Tensor) -> Tensor:
    """The mean magnitude of each sample, (B,)."""
    return x.flatten(1).abs().mean(1)
