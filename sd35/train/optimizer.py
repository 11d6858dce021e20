"""Float32 master weights, the optimizers by name, and the learning rate of each step."""

import math
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import SettingsError
from .muon import Muon
from .settings import Training
from .world import placed_as

BETAS, EPS = (0.9, 0.999), 1e-8
HIDDEN = r".*blocks\.\d+\..*(attn2?\.(qkv|proj)|mlp\.fc[12])\.weight"
"""The matrices between hidden layers, which Muon is for: not embeddings, modulation or the last layer."""


class Masters:
    """The weights that are trained, in float32 at least, and their narrower copies where there are any.

    Gradients of several micro-batches add up in the masters: bfloat16 would lose the small ones.

    Args:
        parameters: by name; those in bfloat16 or float16 get a master.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.own = dict(parameters)
        self.wide: dict[str, Tensor] = {
            name: one if one.dtype in (torch.float32, torch.float64) else one.detach().float()
            for name, one in parameters.items()
        }

    def collect(self) -> None:
        """Add the gradients of a micro-batch to those of the masters."""
        for name, own in self.own.items():
            wide = self.wide[name]
            if wide is not own and own.grad is not None:
                grad = own.grad.to(wide.dtype)
                wide.grad = grad if wide.grad is None else wide.grad + grad
                own.grad = None

    def gradient_norm(self, clip: float) -> float:
        """The norm of all gradients together, which are then scaled down to `clip` at most."""
        norm: Any = nn.utils.clip_grad_norm_([*self.wide.values()], clip)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def clear(self) -> None:
        """Forget all gradients."""
        for own, wide in zip(self.own.values(), self.wide.values(), strict=True):
            own.grad = wide.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters to the copies that the network computes with."""
        for name, own in self.own.items():
            if self.wide[name] is not own:
                own.copy_(self.wide[name])


class Optimizer:
    """One or two optimizers as one, whose state is tensors by name.

    Args:
        named: what they move.
        training: its `optimizer` and `weight_decay`.

    Raises:
        SettingsError: an optimizer whose package is not installed.
    """

    def __init__(self, named: Mapping[str, Tensor], training: Training) -> None:
        hidden = {name for name in named if training.optimizer == "muon" and re.fullmatch(HIDDEN, name)}
        self.rest = {name: one for name, one in named.items() if name not in hidden}
        self.decay, self.hidden = training.weight_decay, {name: named[name] for name in hidden}
        self.muon = Muon(cast(Any, self.hidden)) if hidden else None
        options = {"betas": BETAS, "eps": EPS, "weight_decay": training.weight_decay}
        self.adam: torch.optim.Optimizer = _adam(training.optimizer)([*self.rest.values()], **options)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move the weights along their gradients."""
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        if self.muon is not None:
            for one in self.hidden.values():
                one.mul_(1 - rate * self.decay)
            self.muon.step(rate)

    def state(self) -> dict[str, Tensor]:
        """Its memory, by the name of the weight and of what is remembered."""
        found = {
            f"{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(float(value))
            for name, one in self.rest.items()
            for key, value in self.adam.state[one].items()
        }
        momenta = [] if self.muon is None else self.muon.momenta
        return found | {f"muon/{number}": momentum for number, momentum in enumerate(momenta)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the memory of an earlier run over."""
        for key, value in state.items():
            name, _, what = key.rpartition("/")
            if name == "muon" and self.muon is not None:
                self.muon.momenta[int(what)].copy_(value)
            else:
                own = self.rest[name]
                self.adam.state[own][what] = self._remembered(own, what, value)

    def _remembered(self, own: Tensor, what: str, value: Tensor) -> Any:
        """As the optimizer has it: that of bitsandbytes counts steps in a plain number."""
        if what == "step":
            return value.reshape(()) if isinstance(self.adam, torch.optim.AdamW) else int(value)
        return placed_as(value.to(own.device), own)


def _adam(name: str) -> Any:
    if name != "adamw8bit":
        return torch.optim.AdamW
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise SettingsError(
            "optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or this project with [train]"
        ) from error
    return bitsandbytes.optim.AdamW8bit


def learning_rate(step: int, training: Training) -> float:
    """The learning rate of a step, 0 being the first: a linear rise, then a half cosine down to 0."""
    rate, warmup = training.learning_rate, training.warmup
    if step < warmup:
        return rate * (step + 1) / (warmup + 1)
    if training.schedule == "constant":
        return rate
    return rate * (1 + math.cos(math.pi * (step - warmup) / (training.steps - warmup))) / 2
