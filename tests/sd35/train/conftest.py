"""A folder of pictures, and the smallest run on it."""

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

SETTINGS = {"steps": 4, "batch_size": 2, "rank": 2, "save_every": 2, "learning_rate": 0.01}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Four pictures, one of them wide, with their captions."""
    folder = tmp_path_factory.mktemp("pictures")
    chance = np.random.default_rng(0)
    for number, size in enumerate([(32, 32), (40, 40), (64, 32), (33, 30)]):
        values = chance.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red circle {'left' if number % 2 else 'right'}\n")
    return folder


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    """A copy of them, which a test may change."""
    return shutil.copytree(pictures, tmp_path / "own")


@pytest.fixture(scope="session")
def peers(script) -> ModuleType:
    """peers.py."""
    return script("tests/sd35/train/peers.py")


@pytest.fixture(scope="session")
def settings() -> dict:
    return dict(SETTINGS)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Latents and encodings, which runs of one model share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def trained(model_folder, pictures, settings, cache, tmp_path_factory) -> Path:
    """The folder of a whole run of four steps."""
    from sd35 import train_lora

    folder = tmp_path_factory.mktemp("run") / "run"
    train_lora(model_folder, pictures, folder, places={"cache": cache}, **settings)
    return folder


@pytest.fixture
def spoil(monkeypatch) -> Callable[[Callable[[int], float]], None]:
    """spoil(factor): from now on a LoRA's loss is multiplied by factor(n) at call n, from 1."""
    from sd35.train import lora

    real = lora.velocity_loss

    def spoil(factor: Callable[[int], float]) -> None:
        calls = count(1)
        monkeypatch.setattr(
            lora, "velocity_loss", lambda *given, **more: real(*given, **more) * factor(next(calls))
        )

    return spoil
