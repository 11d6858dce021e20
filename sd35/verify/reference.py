"""The stored reference activations that ship with the package.

`tests/parity/make_reference.py` makes them from diffusers and transformers, and `make_verify.py` beside it
chooses what ships. Models are small and random: every operation of the large ones, in 1.6 MB.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

STORED = Path(__file__).with_name("reference.safetensors")


@dataclass(frozen=True)
class Reference:
    """The part of the stored activations that one model of the reference gave."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    """Sizes, seeds and the versions of the reference."""

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by its name, such as "in/latents"."""
        return self.tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {
            name.removeprefix(prefix): one for name, one in self.tensors.items() if name.startswith(prefix)
        }

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The model's weights in float32, which holds exactly what is stored in 8 bits."""
        return {name: tensor.float() for name, tensor in self.under("weights/").items()}


def load_reference(path: Path = STORED) -> dict[str, Reference]:
    """Read everything that is stored, by the model, or the file of tests/parity, that it is of."""
    with safe_open(path, "pt") as file:
        configs = json.loads(file.metadata()["config"])
        named: dict[str, dict[str, Tensor]] = {model: {} for model in configs}
        for key in file.keys():  # noqa: SIM118  (it is no mapping)
            model, name = key.split("/", 1)
            named[model][name] = file.get_tensor(key)
    return {model: Reference(tensors, configs[model]) for model, tensors in named.items()}
