"""A LoRA that does nothing yet, put on a model to be trained, and written when it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from weights.adapters import Spelling, Update, spell_adapter

from ..adapters.change import Change, Changes
from ..adapters.install import install
from ..adapters.layer import Adapted
from ..adapters.lora import parts_of
from ..errors import SettingsError
from ..loras import Lora
from ..noise import seeded
from ..saved.write import written

NAME = "trained"
"""What the LoRA is called on the model while it is trained."""
FACTORS = 6
"""What numbers are drawn for."""


def fresh_lora(
    target: Any,
    paths: Mapping[str, Sequence[str]],
    *,
    rank: int,
    alpha: float,
    dora: bool = False,
    seed: int = 0,
) -> dict[str, nn.Parameter]:
    """Put a LoRA on a model that does nothing yet; its matrices are float32 and have gradients, alone.

    The first matrix is drawn with a deviation of 1 / rank, as diffusers' scripts do, and the second is zero.
    Of a fused qkv, each third has a LoRA of its own, as those scripts have. A DoRA's magnitudes are the norms
    of the rows.

    Args:
        target: an MM-DiT, a CLIP, or what holds them as a pipeline does.
        paths: part to the layers.
        rank: of every update.
        alpha: the update is multiplied by alpha / rank.
        dora: with magnitudes (arXiv:2402.09353).
        seed: of the first matrices.

    Returns:
        The parameters to train, by part, path and role.

    Raises:
        SettingsError: the rank is larger than a matrix.
    """
    parts = parts_of(target)
    updates = []
    for part, own in paths.items():
        for path in own:
            updates += _fresh(part, path, parts[part], rank=rank, alpha=alpha, dora=dora)
    source = seeded(seed, FACTORS)
    for update in updates:
        update.tensors["down"].normal_(0, 1 / rank, generator=source)
    for module in parts.values():
        module.requires_grad_(False)
    install(parts, updates, Lora("", 1.0, NAME))
    return trained_parameters(target)


def trained_parameters(target: Any) -> dict[str, nn.Parameter]:
    """The matrices of the LoRA that is trained on a model, with gradients."""
    found = {}
    for part, path, changes in _layers(target):
        for number, change in enumerate(changes):
            for role, parameter in cast(Change, change).factors.items():
                found[f"{part}.{path}.{number}.{role}"] = parameter.requires_grad_(True)
    return cast(dict[str, nn.Parameter], found)


def trained_updates(target: Any) -> list[Update]:
    """What has been learned, as updates in float32."""
    updates = []
    for _, _, changes in _layers(target):
        for change in changes:
            own = cast(Change, change)
            tensors = {role: one.detach().float().cpu() for role, one in own.factors.items()}
            updates.append(Update(**{**own.update.__dict__, "tensors": tensors}))
    return updates


def save_lora(target: Any, path: str | Path, spelling: Spelling = "diffusers") -> Path:
    """Write the LoRA that is trained on a model, whole or not at all, over an earlier one."""
    path = Path(path)
    mmdit = parts_of(target).get("mmdit")
    modules = [] if mmdit is None else [name for name, _ in mmdit.named_modules()]
    tensors, metadata = spell_adapter(trained_updates(target), modules, spelling)
    with written(path, overwrite=True) as temporary:
        save_file({name: one.contiguous().clone() for name, one in tensors.items()}, temporary, metadata)
    return path


def _fresh(part: str, path: str, module: nn.Module, *, rank: int, alpha: float, dora: bool) -> list[Update]:
    """The updates of one layer: three of a fused qkv, else one."""
    weight = cast(Tensor, module.get_submodule(path).weight)
    rows, columns = weight.shape
    height = rows // 3 if path.endswith(".qkv") else rows
    if rank > min(height, columns):
        raise SettingsError(
            f"rank {rank} is larger than the matrix of {path}, {height} x {columns}: a rank of at most "
            f"{min(height, columns)} fits"
        )
    return [
        Update(
            part,
            path,
            "lora",
            _tensors(weight[first : first + height], rank, dora=dora),
            (),
            rows=(first, first + height),
            rank=rank,
            alpha=alpha,
            scale=alpha / rank,
            axis=0 if dora else None,
        )
        for first in range(0, rows, height)
    ]


def _tensors(weight: Tensor, rank: int, *, dora: bool) -> dict[str, Tensor]:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    rows, columns = weight.shape
    tensors = {"down": torch.empty(rank, columns, dtype=dtype), "up": torch.zeros(rows, rank, dtype=dtype)}
    return tensors | ({"magnitude": weight.detach().to(dtype).norm(dim=1)} if dora else {})


def _layers(target: Any) -> list[tuple[str, str, Changes]]:
    """Every layer that is trained: part, path, and what is trained there."""
    return [
        (part, path, cast(Changes, layer.loras[NAME]))
        for part, module in parts_of(target).items()
        for path, layer in module.named_modules()
        if isinstance(layer, Adapted) and NAME in layer.loras
    ]
