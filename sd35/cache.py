"""Step caches of a generation: what the transformer computed at one noise level, used again at the next.

    none        every step is computed
    velocity    `flow.Cached`: the guided velocity as a whole, by how much it is expected to have changed
    block       `FirstBlock`: the blocks after the first, by how much the first one's answer has changed
    (0, 1, 4)   `flow.Cached`: these steps are computed, as `sd35 calibrate --budget` finds them

What is drawn with one is near what is drawn without, and has no inverse: docs/caches.md has both in numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

import flow
from mmdit import MMDiT

from .conditions import Call, Condition
from .evaluation import current_evaluation
from .fields import fault
from .settings import Settings

THRESHOLDS = {"velocity": 0.05, "block": 0.1}
"""Defaults: the relative change of the velocity, and of what the first block adds."""
FIRST = 4
"""Levels at the start that are computed in any case, as is the last: there the picture is decided."""


def check_cache(settings: Settings) -> None:
    """Refuse a cache in a generation that it does not fit.

    Raises:
        SettingsError: it does not.
    """
    if settings.cache == "none":
        return
    solver = flow.SOLVERS[settings.solver]
    if solver.reversible or solver.evaluations is None:
        why = "its steps could not be undone" if solver.reversible else "it chooses its levels as it goes"
        raise fault(
            settings, ["cache"], f" does not fit the solver {settings.solver}: {why}. Take euler or another"
        )
    if isinstance(settings.cache, str) and settings.batch_size > 1 and settings.images > 1:
        raise fault(
            settings,
            ["cache"],
            " decides for all pictures of a batch at once, and a picture would depend on those beside it: "
            "leave batch_size at 1, or name the steps that are computed",
        )


def velocity_cache(settings: Settings) -> Callable[[flow.Velocity], flow.Velocity] | None:
    """What stands before the guided velocity of these settings; None for no such cache."""
    if settings.cache in ("none", "block"):
        return None
    left_out, options = settings.left_out, dict[str, Any]()
    if isinstance(settings.cache, tuple):
        options["steps"] = {0, *(step - left_out for step in settings.cache if step >= left_out)}
    else:
        options |= {"threshold": threshold_of(settings), "first": FIRST}
    levels, windows = settings.levels, windows_of(settings)
    return lambda velocity: flow.Cached(velocity, levels, windows=windows, **options)


def block_cache(mmdit: MMDiT, settings: Settings) -> list[Condition]:
    """The condition that caches blocks, to stand next to the transformer; none where it is not asked for."""
    if settings.cache != "block":
        return []
    return [FirstBlock(mmdit, settings.levels, threshold_of(settings), windows_of(settings))]


def threshold_of(settings: Settings) -> float:
    """The threshold of a cache that has one."""
    assert isinstance(settings.cache, str)
    return THRESHOLDS[settings.cache] if settings.cache_threshold is None else settings.cache_threshold


def windows_of(settings: Settings) -> list[tuple[float, float]]:
    """Noise levels in which the velocity is of another kind: guided, zero, with layers left out, steered."""
    guidance, sigmas, levels = settings.guidance, settings.sigmas, settings.levels
    found = [guidance.interval] if settings.guidance_scale != 1 else []
    if guidance.zero_steps:
        found.append((_above(sigmas[guidance.zero_steps]), 1.0))
    if guidance.skip_layer is not None:
        window = guidance.skip_layer.window(sigmas, settings.left_out)
        found += [window] if window else []
    for control in settings.control or ():
        steps = control.kept(len(levels) - 1)
        found += [(_above(levels[max(steps) + 1]), float(levels[min(steps)]))] if steps else []
    return [window for window in found if window != (0.0, 1.0)]


def _above(level: Tensor) -> float:
    """The end of a window of whole steps: all that lies above the level at which the last of them ends."""
    return math.nextafter(float(level), math.inf)


@dataclass
class _Kept:
    """What was last computed of some rows: image tokens, (rows, N, D)."""

    first: Tensor  # what the first block added
    tail: Tensor  # what all that comes after it added, with the residuals of ControlNets


class FirstBlock:
    """A `Condition` that runs the first block alone where what it adds has changed little since.

        H_0 ─ block 0 ─▶ H_1 ─ blocks 1 ... ─▶ H_n ─ final layer       computed: keep H_1 - H_0 and H_n - H_1
        H_0 ─ block 0 ─▶ H_1 + (H_n - H_1, kept) ─ final layer         a hit

    (ParaAttention's first-block cache.) The residual of a ControlNet after the first block is always a new
    one; those after the others are within what is kept, and are not added again. Rows are kept by image and
    branch: with and without the prompt, and with layers left out, each has its own. The first call at a level
    decides, by its row that changed most, and the other branches follow, so that guidance never takes the
    difference of an old and a new velocity. Where a window begins, as of skip-layer guidance, there is a
    branch of which nothing is kept, and all are computed. Finding out costs a computed step one block more.

    Attributes:
        computed: of each level since the beginning, whether all blocks ran.
    """

    def __init__(
        self, mmdit: MMDiT, sigmas: Tensor, threshold: float, windows: Sequence[tuple[float, float]] = ()
    ) -> None:
        """Keep the blocks of a transformer along a falling table.

        Args:
            mmdit: the transformer.
            sigmas: the levels of the steps that will be taken, (steps + 1,).
            threshold: of the mean change of what the first block adds, relative to its mean size.
            windows: noise levels, ends included, with other branches or residuals; see `windows_of`.
        """
        levels = sigmas.tolist()
        self.mmdit, self.threshold, self.windows = mmdit, threshold, tuple(windows)
        self._warm, self._end = levels[min(FIRST, len(levels) - 1)], levels[-2]
        self._begin()

    def _begin(self) -> None:
        self.computed: list[bool] = []
        self._level = float("inf")
        self._inside: set[tuple[float, float]] = set()  # the windows that this level lies in
        self._kept: dict[Any, _Kept] = {}
        self._hits: dict[frozenset[int], bool] = {}  # the decisions of this level, by the images of a call

    def __call__(self, call: Call, run: Callable[[Call], Tensor]) -> Tensor:
        """See `sd35.conditions.Condition`."""
        level, images = call.evaluation.sigma, frozenset(call.evaluation.samples)
        if level > self._level:
            self._begin()
        if level != self._level:
            self._level, self._hits = level, {}
            inside = {(low, high) for low, high in self.windows if low <= level <= high}
            if inside - self._inside:
                self._kept = {}
            self._inside = inside
        if 0 in call.skip_layers:
            return run(call)
        steered = call.residuals is not None
        key = (call.evaluation.samples, call.evaluation.branches, call.latents.shape, steered)
        kept, decided = self._kept.get(key), self._hits.get(images)
        early = level > self._warm or level <= self._end
        if kept is None or early or decided is False:
            return self._compute(call, run, key, images)
        seen, answer = self._watched(self._short(call, kept.tail), run)
        if decided is None:
            changed = (seen.first - kept.first).abs().flatten(1).mean(1) / kept.first.abs().flatten(1).mean(1)
            decided = float(changed.max()) < self.threshold
            self._decide(images, decided)
        return answer if decided else self._compute(call, run, key, images)

    def _decide(self, images: frozenset[int], hit: bool) -> None:
        if images not in self._hits:
            self._hits[images] = hit
            self.computed.append(not hit)

    def _compute(self, call: Call, run: Callable[[Call], Tensor], key: Any, images: frozenset[int]) -> Tensor:
        self._decide(images, False)
        self._kept[key], answer = self._watched(call, run)
        return answer

    def _short(self, call: Call, tail: Tensor) -> Call:
        """The call without the blocks after the first, and with what they added."""
        depth = self.mmdit.config.depth
        own = None if call.residuals is None else call.residuals[0]
        residuals = (tail if own is None else own + tail, *[None] * (depth - 1))
        return replace(call, residuals=residuals, skip_layers=tuple(range(1, depth)))

    def _watched(self, call: Call, run: Callable[[Call], Tensor]) -> tuple[_Kept, Tensor]:
        """Run a call, and see what its blocks added; of this call alone, whatever other threads run."""
        seen: dict[str, Tensor] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(module: Any, inputs: Sequence[Any], output: Any = None) -> None:
                if current_evaluation() is call.evaluation:
                    value = inputs[0] if output is None else output
                    seen[name] = value[0] if isinstance(value, tuple) else value

            return hook

        handles = [
            self.mmdit.patches.register_forward_hook(note("in")),
            self.mmdit.joint_blocks[0].register_forward_hook(note("first")),
            self.mmdit.final_layer.register_forward_pre_hook(note("out")),
        ]
        try:
            answer = run(call)
        finally:
            for handle in handles:
                handle.remove()
        own = None if call.residuals is None else call.residuals[0]
        first = seen["first"] if own is None else seen["first"] + own.to(seen["first"].dtype)
        return _Kept(seen["first"] - seen["in"], seen["out"] - first), answer
