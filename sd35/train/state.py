"""The state of a run in one file, from which it goes on to the same end, bit for bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import fields
from ..errors import SettingsError
from ..saved.write import written
from .settings import Training

FILE, FORMAT = "state.safetensors", "sd35.train 1"
STEP, IDENTITY = "step", "identity"


def identity_of(kind: str, training: Training, **made_of: str) -> dict[str, Any]:
    """What two runs must share for one to go on where the other ended.

    Args:
        kind: what is trained.
        training: its settings; those that change no weight may differ. Where the learning rate is constant,
            a run may be made longer.
        made_of: hashes of the model and of the data.
    """
    settings = fields.deciding(training, "flow")
    if training.schedule == "constant":
        del settings["steps"]
    return {"format": FORMAT, "kind": kind, **made_of, **settings}


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], identity: Mapping[str, Any]) -> None:
    """Write the state after a step over the one before, whole or not at all."""
    whole = _apart({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    with written(folder / FILE, overwrite=True) as temporary:
        save_file(whole | _about(step, identity), temporary)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, with a copy of what shares memory (tables of an 8-bit optimizer), which no file can."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def save_sharded_state(
    folder: Path, step: int, tensors: Mapping[str, Tensor], identity: Mapping[str, Any]
) -> None:
    """The same of tensors that are spread over processes, which all call this together."""
    from .shard import save_sharded  # torch's distributed modules take a second, where several run alone

    save_sharded({**tensors, **_about(step, identity)}, folder / FILE)


def _about(step: int, identity: Mapping[str, Any]) -> dict[str, Tensor]:
    """Step and identity as tensors: a file that several processes write has no other place for them.

    As floats, since torch joins no other kind; a letter each.
    """
    letters = json.dumps(dict(identity)).encode()
    return {
        STEP: torch.tensor(float(step), dtype=torch.float64),
        IDENTITY: torch.tensor(list(letters)).float(),
    }


def load_state(folder: Path, identity: Mapping[str, Any]) -> tuple[int, dict[str, Tensor]]:
    """The step after which the state in a folder was saved, and its tensors.

    Raises:
        SettingsError: there is none, it is damaged, or of another run; the message says in what.
    """
    path = folder / FILE
    if not path.is_file():
        raise SettingsError(f"there is nothing to resume in {folder}: it has no {FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        theirs = json.loads(bytes(tensors.pop(IDENTITY).int().tolist()))
        step = int(tensors.pop(STEP).item())
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise SettingsError(f"{path} is damaged ({error}): the run cannot be resumed from it") from error
    ours = json.loads(json.dumps(dict(identity)))
    differing = [
        f"{name} was {theirs.get(name)!r} and is {ours.get(name)!r}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise SettingsError(f"{path} is of another run: {'; '.join(differing)}")
    return step, tensors
