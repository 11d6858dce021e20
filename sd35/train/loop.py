"""The loop that every way of training shares: gradients, one step, a row in the log, now and then a save."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SettingsError
from .course import PROBED, Course, DivergedError, diverged
from .ema import Average
from .log import Log, bar
from .optimizer import Masters, Optimizer, learning_rate
from .settings import Training
from .state import FILE, load_state, save_sharded_state, save_state
from .world import World, placed_as

Loss = Callable[[int], Tensor]
"""loss(number) of a micro-batch, counted from 0 over the whole run: a function of that number and of the
weights alone, so that a run that is resumed repeats it."""


@dataclass(frozen=True)
class Watch:
    """What is looked at on the way; each is called with the weights that would be written."""

    validate: Callable[[], Mapping[float, float]] | None = None
    """Losses by noise level."""
    sample: Callable[[int], None] | None = None
    """Draws pictures after so many steps."""
    sigmas: tuple[float, ...] = ()
    """The levels of `validate`."""


@dataclass(frozen=True)
class Run:
    """Where a run writes to, and what it is."""

    folder: Path
    identity: Mapping[str, Any]
    resume: bool = False
    progress: bool = False
    watch: Watch = field(default_factory=Watch)
    world: World = field(default_factory=World)


def new_folder(folder: Path, *, resume: bool) -> Path:
    """Make the folder of a run, or see that there is a run to resume in it.

    Raises:
        SettingsError: there is a run and it is not to be resumed, or the other way round.
    """
    if resume and not (folder / FILE).is_file():
        raise SettingsError(f"there is nothing to resume in {folder}: it has no {FILE}")
    if not resume and (folder / FILE).exists():
        raise SettingsError(f"{folder} holds a run: resume it, or choose another output folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fit(
    parameters: Mapping[str, nn.Parameter],
    loss: Loss,
    training: Training,
    run: Run,
    export: Callable[[Path], None],
) -> None:
    """Train.

    Args:
        parameters: what is trained, by name; nothing else has gradients.
        loss: see `Loss`.
        training: the settings.
        run: where to, and whether to go on with what is there.
        export: writes the weights as they are used, into the folder of the run.

    Raises:
        DivergedError: not a number, and the state of the last good step is on disk; or the run is lost, and
            that of the last save is.
        SettingsError: the run that is resumed is another.
    """
    learner, watch, world = Learner(parameters, training, run.world), run.watch, run.world
    start = saved = learner.restore(run) if run.resume else 0
    levels = [f"validation {level:g}" for level in watch.sigmas]
    columns = ["validation", *levels]
    log = Log(run.folder, columns, after=start, tensorboard=training.tensorboard, silent=not world.is_main)
    shown = run.progress and world.is_main
    course = Course(lambda: learner.probe(loss))
    steps = bar(shown=shown, total=training.steps, initial=start, unit="step")
    for step in range(start + 1, training.steps + 1):
        began = time.monotonic()
        row = learner.gradients(loss, step)
        if not (isfinite(row["loss"]) and isfinite(row["gradient_norm"])):
            if step - 1 > saved:
                learner.save(step - 1, run, export)
            raise DivergedError(diverged(row, run.folder))
        learner.update(step)
        saves = _due(step, training.save_every, training.steps)
        if course.is_lost(row["loss"], saves=saves):
            raise DivergedError(course.told(step, saved, run.folder))
        row |= {"learning_rate": learning_rate(step - 1, training), "seconds": time.monotonic() - began}
        if watch.validate is not None and _due(step, training.validate_every, training.steps):
            with learner.averaged():
                losses = watch.validate()
            row["validation"] = sum(losses.values()) / len(losses)
            row |= {f"validation {level:g}": value for level, value in losses.items()}
        log.add(row)
        steps.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        steps.update()
        if saves:
            learner.save(step, run, export)
            saved = step
        if watch.sample is not None and _due(step, training.sample_every, training.steps):
            with learner.averaged():
                watch.sample(step)
    steps.close()


class Learner:
    """Weights, optimizer and average: all that a step changes, and that a resumed run takes over.

    Args:
        parameters: what is trained, by name.
        training: the settings.
        world: the processes that share each batch.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], training: Training, world: World | None = None
    ) -> None:
        self.training, self.world = training, world or World()
        self.masters = Masters(parameters)
        self.optimizer = Optimizer(self.masters.wide, training)
        ema = training.ema
        self.average = None if ema is None else Average(self.masters.wide, ema, training.ema_power)

    def gradients(self, loss: Loss, step: int) -> dict[str, float]:
        """Leave the clipped gradients of a step in the masters; its number is 1 for the first."""
        self.masters.clear()
        count, values = self.training.accumulate, []
        for micro in range(count):
            value = loss((step - 1) * count + micro)
            (value / count).backward()
            self.masters.collect()
            values.append(value.detach())
        mean = torch.stack(values).mean()
        grads = [] if self.is_sharded else [one.grad for one in self.masters.wide.values()]
        self.world.average([mean, *(grad for grad in grads if grad is not None)])
        norm = self.masters.gradient_norm(self.training.clip)
        return {"step": step, "loss": float(mean), "gradient_norm": norm}

    def probe(self, loss: Loss) -> float:
        """The mean loss of the run's first micro-batches with the weights as they are."""
        first = range(min(PROBED, self.training.steps))
        mean = torch.stack([loss(number).detach() for number in first]).mean()
        self.world.average([mean])
        return float(mean)

    def update(self, step: int) -> None:
        """Move the weights along the gradients."""
        self.optimizer.step(learning_rate(step - 1, self.training))
        self.masters.publish()
        self.masters.clear()
        if self.average is not None:
            self.average.update(step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the network compute with the average, where there is one, inside this block."""
        with nullcontext() if self.average is None else self.average.in_place():
            self.masters.publish()
            yield
        self.masters.publish()

    def save(self, step: int, run: Run, export: Callable[[Path], None]) -> None:
        """Write what has been learned, and the state from which the run goes on."""
        self.masters.clear()
        if not (self.world.is_main or self.is_sharded):
            return
        with self.averaged():
            export(run.folder)
        tensors = {
            f"{group}:{name}": one for group, own in self._groups().items() for name, one in own.items()
        }
        save = save_sharded_state if self.is_sharded else save_state
        save(run.folder, step, tensors, run.identity)

    @property
    def is_sharded(self) -> bool:
        """Whether each process has a part of every weight: then all of them save together."""
        return any(hasattr(one, "full_tensor") for one in self.masters.wide.values())

    @torch.no_grad()
    def restore(self, run: Run) -> int:
        """Take over the state in the folder of a run; gives the number of steps that were taken."""
        step, tensors = load_state(run.folder, run.identity)
        groups: dict[str, dict[str, Tensor]] = {"weight": {}, "optimizer": {}, "average": {}}
        for key, tensor in tensors.items():
            group, _, name = key.partition(":")
            groups[group][name] = tensor
        for group in ("weight", "average"):
            for name, own in self._groups().get(group, {}).items():
                own.copy_(placed_as(groups[group][name], own))
        self.optimizer.restore(groups["optimizer"])
        self.masters.publish()
        return step

    def _groups(self) -> dict[str, Mapping[str, Tensor]]:
        """All that a step depends on, by what it is and by name."""
        groups: dict[str, Mapping[str, Tensor]] = {"weight": self.masters.wide}
        groups["optimizer"] = self.optimizer.state()
        return groups if self.average is None else groups | {"average": self.average.values}


def _due(step: int, every: int | None, steps: int) -> bool:
    """Whether something is done after a step: each so many, and at the end."""
    return every is not None and (step % every == 0 or step == steps)
