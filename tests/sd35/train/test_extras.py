"""What the extra `train` adds; skipped by name where it is not installed."""

import pytest
import torch
from safetensors.torch import load_file

from sd35 import train_lora


def test_eight_bit_adam_learns_and_goes_on(model_folder, pictures, settings, cache, tmp_path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra 'train'")

    def train(name, steps, **places):
        given = settings | {"optimizer": "adamw8bit", "schedule": "constant", "steps": steps, "rank": 32}
        train_lora(
            model_folder,
            pictures,
            tmp_path / name,
            places={"cache": cache, **places},
            **given,
            target=("blocks",),
        )
        return load_file(tmp_path / name / "state.safetensors")

    whole = train("whole", 4)
    train("cut", 2)
    resumed = train("cut", 4, resume=True)
    assert any(one.dtype == torch.uint8 for one in whole.values())
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(one, resumed[name]) for name, one in whole.items())


def test_the_curves_are_written_for_tensorboard(model_folder, pictures, settings, cache, tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra 'train'")
    train_lora(
        model_folder, pictures, tmp_path / "run", places={"cache": cache}, **settings, tensorboard=True
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [one.step for one in events.Scalars("loss")] == [1, 2, 3, 4]
