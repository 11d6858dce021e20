"""The reference runs of image to image, inpainting and ControlNets, and a model that is told their texts."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from mmdit import MMDiT, MMDiTConfig
from sd35.model import Model
from sd35.settings import Settings
from sd35.size import Size
from textenc import Encoding, Prompt
from vae import VAE, VAEConfig
from weights.build import build_controlnet

BASE = "weights/base/model.diffusion_model."


@dataclass
class Told(Model):
    """A model whose texts are given, as the reference runs were."""

    cond: Encoding | None = None
    uncond: Encoding | None = None

    def encode_each(self, settings: Settings) -> list[Encoding]:
        assert self.cond is not None
        assert self.uncond is not None
        return [self.cond] * settings.images + [self.uncond]


class Runs:
    """One file of runs: tensors by name, and what it was made with."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.folder = name, folder
        self.tensors, self.config = read(folder / "pictures" / f"{name}.safetensors")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def text(self, half: str, dtype: torch.dtype) -> Encoding:
        context, pooled = self[f"in/context_{half}"].to(dtype), self[f"in/pooled_{half}"].to(dtype)
        return Encoding(context, pooled, (Prompt(),), ((),), (), "reference")

    def model(self, dtype: torch.dtype = torch.float32, changed: dict[str, Tensor] | None = None) -> Told:
        base, _ = read(self.folder / "parity" / "controlnet_8b_like.safetensors")
        weights = {key.removeprefix(BASE): one.float() for key, one in base.items() if key.startswith(BASE)}
        weights |= {name: tensor.float() for name, tensor in (changed or {}).items()}
        mmdit = MMDiT(MMDiTConfig.from_shapes({k: v.shape for k, v in weights.items()}, num_heads=1))
        mmdit.load_state_dict(weights)
        coded, _ = read(self.folder / "parity" / "vae.safetensors")
        prefix = "weights/first_stage_model."
        coded = {k.removeprefix(prefix): v.float() for k, v in coded.items() if k.startswith(prefix)}
        vae = VAE(VAEConfig.from_shapes({k: v.shape for k, v in coded.items()}))
        vae.load_state_dict(coded)
        parts = mmdit.to(dtype).eval().requires_grad_(False), vae.to(dtype).eval().requires_grad_(False)
        size = Size(self.config["size"][1], self.config["size"][0])
        texts = {half: self.text(half, dtype) for half in ("cond", "uncond")}
        return Told(*parts, None, "reference", size, **texts)


def read(path: Path) -> tuple[dict[str, Tensor], dict]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads((file.metadata() or {}).get("config", "{}"))


@pytest.fixture(scope="session")
def runs(shared_reference: Path) -> Callable[[str], Runs]:
    return lambda name: Runs(shared_reference, name)


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    """The largest error, relative to the largest magnitude of what is expected."""

    def relative(actual: Tensor, expected: Tensor) -> float:
        assert actual.shape == expected.shape
        expected = expected.double()
        return float((actual.double() - expected).abs().max() / expected.abs().max())

    return relative


@pytest.fixture(scope="session")
def net_of(shared_reference: Path):
    """A ControlNet of the reference runs: "8b" or "2b", with some weights changed."""

    def load(kind: str, changed: dict[str, Tensor] | None = None):
        tensors, _ = read(shared_reference / "parity" / f"controlnet_{kind}_like.safetensors")
        prefix = "weights/controlnet/"
        weights = {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
        weights["control_type"] = weights["control_type"].int()
        weights |= {name: tensor.float() for name, tensor in (changed or {}).items()}
        net = build_controlnet(weights).float()
        net.load_state_dict(weights)
        return net.eval().requires_grad_(False)

    return load
