"""What the stages of training share: a plan by time, the weights' copies, and one step.

A stage has minutes and not steps, so that it ends in time on any machine: its learning rate follows the
share of its time that is gone.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..saved.write import written
from ..train.muon import Muon
from ..train.together import approach_all, copy_all

REPORT = 15.0  # seconds between two lines of a report


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How fast a stage trains."""

    learning_rate: float
    muon: float = 1.0  # Muon's learning rate, as a share of that
    warmup: float = 0.03  # share of its time over which the learning rate rises
    decay: float = 0.4  # the last share of its time, over which it falls to 0
    ema: float = 0.998  # the average that is kept moves 1 - ema of the way each step

    def rate(self, share: float) -> float:
        """Learning rate when a share of the time is gone: a ramp up, a plateau, a ramp down."""
        rising = (share + 1e-3) / max(self.warmup, 1e-3)
        return self.learning_rate * max(0.0, min(1.0, rising, (1 - share) / self.decay))


class Trainer:
    """A model's weights, the copy in bfloat16 that computes, their average, and the optimizers.

    Args:
        model: trained in place, float32, its parameters contiguous.
        is_hidden: from a parameter's name, whether Muon trains it; AdamW trains the others.
        is_trained: from a parameter's name, whether it is trained at all.
        layout: of the copy's memory.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        is_hidden: Callable[[str], bool],
        *,
        is_trained: Callable[[str], bool] = lambda _: True,
        layout: torch.memory_format = torch.preserve_format,
    ) -> None:
        self.model, self.plan = model, plan
        model.zero_grad(set_to_none=True)  # of an earlier stage, which a copy would take along
        # torch's stubs do not know this argument of Module.to.
        self.worker = deepcopy(model).bfloat16().to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        trained = {name: parameter for name, parameter in model.named_parameters() if is_trained(name)}
        copies = dict(self.worker.named_parameters())
        self.parameters = list(trained.values())
        self.copies = [copies[name] for name in trained]
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        self.muon = Muon({name: one for name, one in trained.items() if is_hidden(name)})
        rest = [one for name, one in trained.items() if not is_hidden(name)]
        self.adam = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.steps = 0

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Move the weights along the gradients that the copy holds; `share` of the stage's time is gone."""
        rate = self.plan.rate(share)
        found = [torch.zeros_like(copy) if copy.grad is None else copy.grad for copy in self.copies]
        copy_all(self.gradients, found)
        for copy in self.copies:
            copy.grad = None
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.muon.step(self.plan.muon * rate)
        copy_all(self.copies, self.parameters)
        self.steps += 1
        ema = min(self.plan.ema, self.steps / (self.steps + 10))
        approach_all(self.average, self.parameters, 1 - ema)

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the average in the model and in its copy."""
        copy_all(self.parameters, self.average)
        copy_all(self.copies, self.average)

    def averaged(self) -> nn.Module:
        """A copy of the model with the averaged weights, while training goes on."""
        model = deepcopy(self.model)
        own = {id(old): new for old, new in zip(self.model.parameters(), model.parameters(), strict=True)}
        with torch.no_grad():
            copy_all([own[id(one)] for one in self.parameters], self.average)
        return model


class Run:
    """A run's time and its log.

    Args:
        minutes: how long it may take, from the moment the process began.
        log: a file to which its lines are added, beside standard output.
        save: writes what there is; called every `every` seconds.
    """

    def __init__(self, minutes: float, log: Path, *, began: float, every: float = 90.0) -> None:
        self.began, self.end = began, began + 60 * minutes
        self.log, self.every = log, every
        self.save: Callable[[], None] = lambda: None
        self._saved = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line with the time since the beginning, and add it to the log."""
        line = f"{time.monotonic() - self.began:6.1f} s  {line}"
        print(line, flush=True)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def stage(
        self, label: str, until: float, *, examples: int, losses: Mapping[str, Tensor], trainer: Trainer
    ) -> Iterator[float]:
        """The shares of a stage's time that are gone, one for each step, while there is time.

        Args:
            label: before each line of the report.
            until: `left()` at which it ends.
            examples: of a step, for the report.
            losses: what to report; the caller keeps the tensors up to date.
            trainer: is taken back to its last average that was finite where a loss is not.

        Raises:
            FloatingPointError: no step of the stage had a finite loss.
        """
        start = last = time.monotonic()
        end = self.end - until
        step = since = 0
        good: list[Tensor] | None = None
        while (now := time.monotonic()) < end:
            if now - last > REPORT and step > since:
                values = {name: float(value) for name, value in losses.items()}
                told = ", ".join(f"{name} {value:.5f}" for name, value in values.items())
                speed = (step - since) * examples / (time.monotonic() - last)
                self.say(f"{label}, step {step}: {told}; {speed:.0f} a second; {self.left():.0f} s left")
                if all(abs(value) < float("inf") for value in values.values()):
                    good = [one.clone() for one in trainer.average]
                    if now - self._saved > self.every:
                        self.save()
                        self._saved = time.monotonic()
                elif good is None:
                    raise FloatingPointError(f"{label}: the loss is not a number from the first steps on")
                else:
                    self.say(f"{label}: not a number; back to the weights of the last report")
                    with torch.no_grad():
                        for kept in (trainer.average, trainer.parameters, trainer.copies):
                            copy_all(kept, good)
                        for momentum in trainer.muon.momenta:
                            momentum.zero_()
                    trainer.adam.state.clear()
                last, since = time.monotonic(), step
            yield (now - start) / max(end - start, 1e-6)
            step += 1
        told = ", ".join(f"{name} {float(value):.5f}" for name, value in losses.items())
        self.say(f"{label} ended after {step} steps: {told}; {self.left():.0f} s left")


def save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, replacing one that is there in one move.

    An interruption leaves the file that was there. Where the process is killed, its unfinished file stays
    beside it, under a hidden name that nothing reads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path, overwrite=True) as new:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new, metadata)
