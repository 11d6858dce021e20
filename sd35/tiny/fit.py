"""The loop that every stage of training runs, and the state that lets it be stopped and resumed.

Batches are made from the number of the step alone, so a run that was interrupted and resumed
sees what an uninterrupted one would have seen. The state is one safetensors file, written whole or
not at all; it knows its seed and its plan, and is not taken up by another run.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange

from ..errors import SettingsError
from ..saved.write import written


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast a stage trains."""

    steps: int
    learning_rate: float
    warmup: int = 200  # steps over which the learning rate rises from 0
    decay: float = 0.3  # the last share of the steps, over which it falls to 0 again
    weight_decay: float = 0.0
    ema: float = 0.999  # the average that is kept moves 1 - ema of the way each step
    save_every: int = 250  # steps

    def rate(self, step: int) -> float:
        """Learning rate at a step, as a share of `learning_rate`: a ramp up, a plateau, a ramp down."""
        remaining = (self.steps - step) / max(self.decay * self.steps, 1)
        return min(1.0, (step + 1) / self.warmup, remaining)


def fit(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    plan: Plan,
    state: Path,
    *,
    seed: int,
    label: str,
    worker: nn.Module | None = None,
    is_hidden: Callable[[str], bool] | None = None,
) -> nn.Module:
    """Train until the plan is done, from where `state` stands if it exists.

    Args:
        model: trained in place; only its parameters that require gradients.
        loss_at: step number to loss; it draws its batch from that number.
        plan: how long and how fast.
        state: where weights, average and optimizer are kept between runs.
        seed: of the run, which `loss_at` draws from; a state of another seed is refused.
        label: shown before the progress bar.
        worker: a copy of the model in bfloat16, of which `loss_at` makes use; None where it uses the
            model. It gets the model's weights at each step and hands its gradients over.
        is_hidden: from a parameter's name, whether it is a matrix between hidden layers, which Muon then
            trains (https://kellerjordan.github.io/posts/muon); AdamW trains the rest, or without it all.

    Returns:
        The exponential moving average of the model.

    Raises:
        SettingsError: `state` is of a run with another seed or plan.
        FloatingPointError: the loss is not a number; the state on disk is that of the last save.
    """
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(plan.ema))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = _optimizers(model, plan, is_hidden)
    run = {name: str(value) for name, value in {"seed": seed, **asdict(plan)}.items()}
    start = load_state(state, model, ema, optimizers, run) if state.exists() else 0
    progress = trange(start, plan.steps, initial=start, total=plan.steps, desc=label, mininterval=2)
    running = 0.0
    for step in progress:
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * plan.rate(step)
        if worker is not None:
            worker.load_state_dict(model.state_dict())
        loss = loss_at(step)
        loss.backward()
        if worker is not None:
            _hand_over(worker, model)
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        ema.update_parameters(model)

        value = loss.item()
        if value != value:
            raise FloatingPointError(f"{label}: the loss is NaN at step {step}; lower the learning rate")
        running = value if step == start else 0.98 * running + 0.02 * value
        progress.set_postfix(loss=f"{running:.5f}", refresh=False)
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            save_state(state, model, ema, optimizers, run, step + 1)
    return ema.module


def _optimizers(
    model: nn.Module, plan: Plan, is_hidden: Callable[[str], bool] | None
) -> dict[str, torch.optim.Optimizer]:
    """What trains the model, by the name that its moments have in the state."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    hidden = [parameter for name, parameter in trained if is_hidden is not None and is_hidden(name)]
    rest = [parameter for name, parameter in trained if is_hidden is None or not is_hidden(name)]
    rate, decay = plan.learning_rate, plan.weight_decay
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adam": torch.optim.AdamW(rest, lr=rate, weight_decay=decay, betas=(0.9, 0.99), fused=True)
    }
    if hidden:
        # Scaled so that its steps are as large as AdamW's and one learning rate fits both.
        optimizers["muon"] = torch.optim.Muon(
            hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
    return optimizers


def _hand_over(worker: nn.Module, model: nn.Module) -> None:
    """Move gradients from the worker's parameters to the model's, in the model's dtype."""
    for source, target in zip(worker.parameters(), model.parameters(), strict=True):
        target.grad = None if source.grad is None else source.grad.to(target.dtype)
        source.grad = None


def save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, replacing one that is there in one move.

    An interruption leaves the file that was there. Where the process is killed, its unfinished file stays
    beside it, under a hidden name that nothing reads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path, overwrite=True) as new:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new, metadata)


def save_state(
    path: Path,
    model: nn.Module,
    ema: AveragedModel,
    optimizers: Mapping[str, torch.optim.Optimizer],
    run: Mapping[str, str],
    step: int,
) -> None:
    """Write everything that `load_state` needs: weights, average, moments, the run and its next step."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"ema/{name}": tensor for name, tensor in ema.state_dict().items()}
    for kind, optimizer in optimizers.items():
        for number, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{kind}/{number}/{name}": tensor for name, tensor in moments.items()}
    save(tensors, path, {**run, "step": str(step)})


def load_state(
    path: Path,
    model: nn.Module,
    ema: AveragedModel,
    optimizers: Mapping[str, torch.optim.Optimizer],
    run: Mapping[str, str],
) -> int:
    """Restore what `save_state` wrote and return the number of the next step.

    Raises:
        SettingsError: it is the state of another run.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in ("model", "ema", *optimizers)}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        for name, value in run.items():
            if metadata.get(name) != value:
                raise SettingsError(
                    f"{path} is of a run with {name} {metadata.get(name)}, not {value}: go on with the same "
                    "options, or choose another output folder"
                )
        step = int(metadata["step"])
        for name in file.keys():  # noqa: SIM118 (a file is no dict and does not iterate)
            part, key = name.split("/", 1)
            parts[part][key] = file.get_tensor(name)
    model.load_state_dict(parts["model"])
    ema.load_state_dict(parts["ema"])
    for kind, optimizer in optimizers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts[kind].items():
            number, name = key.split("/")
            moments.setdefault(int(number), {})[name] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return step


def seeded(seed: int, *numbers: int) -> torch.Generator:
    """A generator that depends on these numbers and nothing else, on the CPU."""
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(seed)
