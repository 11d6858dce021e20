"""Another implementation of the same models, to be measured beside ours.

What it needs is no dependency of this package, so none is imported from here: a peer is a file of Python that
is found by its path. The repository has one of diffusers and transformers, `benchmarks/diffusers_peer.py`.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from mmdit import MMDiTConfig
from textenc import CLIPConfig, T5Config
from vae import VAEConfig

from ..errors import SettingsError
from .clock import Run

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


class Peer(Protocol):
    """What a peer's file has, as functions: models of the same sizes with random weights."""

    NAME: str
    """For people, with versions."""
    IMPORT: str
    """The statement that imports what a user of it needs to draw a picture."""

    def transformer(
        self, config: MMDiTConfig, device: torch.device, dtype: torch.dtype
    ) -> Callable[..., Any]:
        """(latents, sigma, context, pooled) to a velocity."""
        ...

    def step(self, config: MMDiTConfig, device: torch.device, dtype: torch.dtype) -> Callable[..., Any]:
        """(latents, context and pooled of cond and uncond) to the latents after a guided step of Euler."""
        ...

    def autoencoder(
        self, config: VAEConfig, device: torch.device, dtype: torch.dtype
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Two functions: one decodes latents, one encodes an image."""
        ...

    def encoder(
        self, config: CLIPConfig | T5Config, device: torch.device, dtype: torch.dtype
    ) -> Callable[..., Any]:
        """A function of token ids that runs the encoder."""
        ...

    def loading(self, config: MMDiTConfig, device: torch.device, dtype: torch.dtype, folder: Path) -> Run:
        """Write a transformer into a folder, and give back the call that reads it."""
        ...


def load_peer(name: str) -> Peer:
    """The peer of a name, in the repository's folder of benchmarks, or of a path.

    Raises:
        SettingsError: there is no such file, or it needs what is not installed.
    """
    path = Path(name) if name.endswith(".py") else FOLDER / f"{name}_peer.py"
    if not path.is_file():
        raise SettingsError(
            f"there is no {path} to compare with: give the path of such a file, or run from a clone of the "
            "repository, which has benchmarks/diffusers_peer.py"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise SettingsError(
            f"{path.name} cannot be compared with: {error}; install what it imports"
        ) from error
    return cast(Peer, module)
