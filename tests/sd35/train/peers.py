"""What the peers' training scripts computed, and how near to it a training step has to come.

All that is stored is float32, and lies as far from the true value as float32 does: a run in float64 is
1.04e-6 from it at most, on every processor. One in float32 is 0.9e-6 from it where it rounds as the scripts
did, and 1.7e-6 where exp, sin and the order of sums are another processor's.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import weights
from sd35.train.data import Batch
from sd35.train.loop import Learner
from sd35.train.objective import Draw
from sd35.train.optimizer import BETAS, EPS
from sd35.verify.sinusoids import Sinusoids, standing_in

LIMITS = {torch.float64: 1.5e-6, torch.float32: 2e-6}
"""Of gradients and weights: the norm of the difference, relative to that of what is stored."""
LOSS = {torch.float64: 5e-7, torch.float32: 2e-6}
"""Of a loss, relative."""
LARGEST = {torch.float64: 2e-6, torch.float32: 4e-6}
"""Of each element of a gradient, relative to the largest."""


def stored(folder: Path, name: str) -> tuple[dict[str, Tensor], dict]:
    """A file of training steps, and how they were made."""
    with safe_open(folder / "training" / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


def base_of(folder: Path, name: str, prefix: str, dtype: torch.dtype = torch.float32):
    """The scripts' small transformer."""
    tensors = load_file(folder / "parity" / f"{name}.safetensors")
    state = {
        key.removeprefix(prefix).removeprefix("model.diffusion_model."): tensor.float()
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
    model = weights.build_mmdit(state)
    model.load_state_dict(state)
    return model.to(dtype)


def batch_of(golden: Mapping[str, Tensor], rows: int, dtype: torch.dtype = torch.float32) -> Batch:
    """The first rows of what the scripts learned from."""
    inputs = (golden[f"in/{name}"][:rows].to(dtype) for name in ("latents", "context", "pooled"))
    return Batch(*inputs, ("",) * rows)


def drawn(golden: Mapping[str, Tensor], prefix: str, dtype: torch.dtype = torch.float32) -> Draw:
    """The noise and the noise levels that the scripts drew."""
    return Draw(golden[f"{prefix}/noise"].to(dtype), golden[f"{prefix}/sigma"])


@contextmanager
def reading(sinusoids: Sinusoids, *readers: nn.Module) -> Iterator[None]:
    """Let modules read the sinusoids of the processor that the scripts ran on."""
    with ExitStack() as stack:
        for reader in readers:
            stack.enter_context(standing_in(reader, sinusoids))
        yield


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The norm of a difference, relative to what is expected."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def assert_gradients(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Hold gradients to the bounds above, tensor by tensor."""
    assert theirs
    for name, expected in theirs.items():
        found = ours[name].double()
        assert apart(found, expected) < LIMITS[dtype], name
        assert (found - expected).abs().max() < LARGEST[dtype] * expected.abs().max(), name


def reckoned(
    gradients: Sequence[Mapping[str, Tensor]], dtype: torch.dtype, later: float | None = None
) -> list[dict[str, Tensor]]:
    """The errors of each step's gradients by `LARGEST`, or in steps after the first by `later`."""
    limits = [LARGEST[dtype], *[later or LARGEST[dtype]] * (len(gradients) - 1)]
    return [
        {name: limit * one.abs().max() for name, one in each.items()}
        for limit, each in zip(limits, gradients, strict=True)
    ]


def measured(
    wide: Sequence[Mapping[str, Tensor]], narrow: Sequence[Mapping[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """The errors of each step's gradients in float32, as a run in float64 shows them.

    Of each tensor the largest, four times: the script's own are others of the same size.
    """
    return [
        {name: 4 * (one - low[name]).abs().max() for name, one in high.items()}
        for high, low in zip(wide, narrow, strict=True)
    ]


def assert_weights(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    gradients: Sequence[Mapping[str, Tensor]],
    errors: Sequence[Mapping[str, Tensor]],
    rate: float,
) -> float:
    """Hold each weight after some steps of AdamW to what errors of gradients make of it, to first order.

    Returns:
        How far all of them together are apart, see `apart`.
    """
    for name in theirs:
        moved = rate * reach([one[name] for one in gradients], [one[name] for one in errors])
        allowed = moved + 2**-22 * theirs[name].abs()
        assert ((ours[name] - theirs[name]).abs() <= allowed).all(), name
    return apart(*(torch.cat([one[name].detach().flatten() for name in theirs]) for one in (ours, theirs)))


def reach(gradients: Sequence[Tensor], errors: Sequence[Tensor | float]) -> Tensor:
    """How far errors of gradients move the updates of AdamW, summed over steps, for a learning rate of 1.

    An update is m / (r + eps) with the root r of v, which is a norm of the gradients so far. So an error d of
    the gradients moves it by no more than (m(|d|) + |m| / (r + eps) r(d)) / (r + eps), to first order.
    """
    total, first, second = (torch.zeros_like(gradients[0], dtype=torch.float64) for _ in range(3))
    first_error, second_error = first.clone(), first.clone()
    for step, (gradient, error) in enumerate(zip(gradients, errors, strict=True), 1):
        first = first.lerp(gradient.double(), 1 - BETAS[0])
        second = second.lerp(gradient.double().square(), 1 - BETAS[1])
        first_error = BETAS[0] * first_error + (1 - BETAS[0]) * error
        second_error = BETAS[1] * second_error + (1 - BETAS[1]) * error**2
        unbiased = [1 - beta**step for beta in BETAS]
        root = (second / unbiased[1]).sqrt() + EPS
        update = first / unbiased[0] / root
        total += (first_error / unbiased[0] + update.abs() * (second_error / unbiased[1]).sqrt()) / root
    return total


def gradients_of(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Of each parameter, zero where there is none."""
    return {
        name: torch.zeros_like(one) if one.grad is None else one.grad.clone()
        for name, one in parameters.items()
    }


def train(
    parameters: Mapping[str, nn.Parameter],
    training,
    loss: Callable[[int], Tensor],
    each: Callable[[int, dict], None],
    steps: int = 3,
) -> list[dict[str, Tensor]]:
    """Take steps and give back the clipped gradients of each; `each` sees the number and the row of one."""
    learner, gradients = Learner(parameters, training), []
    for step in range(steps):
        row = learner.gradients(lambda _, step=step: loss(step), step + 1)
        gradients.append(gradients_of(parameters))
        each(step, row)
        learner.update(step + 1)
    return gradients
