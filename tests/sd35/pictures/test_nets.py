"""A ControlNet's file is read once for several calls, and let go when it is not wanted any more."""

import os

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmdit import ControlNet, ControlNetConfig
from sd35 import load
from sd35.controls import Control
from sd35.memory import Plan
from sd35.tasks import steer


@pytest.fixture
def files(tmp_path):
    """Two ControlNets of the small model, and a picture."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "photo.png")
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for seed, path in enumerate(paths):
        net = ControlNet(ControlNetConfig(dim=64, depth=1, num_heads=1, pooled_dim=24))
        generator = torch.Generator().manual_seed(seed)
        state = {
            name: torch.randn(tensor.shape, generator=generator) / 20
            if tensor.is_floating_point()
            else tensor
            for name, tensor in net.state_dict().items()
        }
        save_file({**state, "control_type": torch.tensor([2], dtype=torch.int32)}, path)
    return *paths, tmp_path / "photo.png"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The files whose weights were read."""
    found, read = [], steer.load_component

    def counted(component, *args):
        found.append(component.where)
        return read(component, *args)

    monkeypatch.setattr(steer, "load_component", counted)
    return found


def test_the_second_call_does_not_read(model_folder, files, reads) -> None:
    first, second, photo = files
    pipe = load(model_folder)

    def drawn(*sources):
        control = [Control(source, photo, scale=2.0) for source in sources]
        return pipe.generate("a", steps=2, control=control).latents

    once = drawn(first)
    assert torch.equal(drawn(first), once)
    assert reads == [str(first)]
    both = drawn(first, second)
    assert (reads, len(pipe.nets)) == ([str(first), str(second)], 2)
    assert not torch.equal(both, once)
    drawn(second)
    assert (len(reads), len(pipe.nets)) == (2, 1)  # the other one was let go
    assert torch.equal(drawn(first), once)
    assert len(reads) == 3
    pipe.generate("a", steps=1)
    assert not pipe.nets


def test_another_file_in_its_place_and_another_dtype_are_read(model_folder, files, reads) -> None:
    path, _, photo = files
    pipe, control = load(model_folder), Control(path, photo, scale=2.0)
    once = pipe.generate("a", steps=2, control=control).latents
    changed = {
        name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()
    }
    path.unlink()
    save_file(changed, path)
    assert not torch.equal(pipe.generate("a", steps=2, control=control).latents, once)
    os.utime(path, ns=(1, 1))
    pipe.generate("a", steps=2, control=control)
    pipe.to(dtype=torch.bfloat16)
    assert not pipe.nets
    pipe.generate("a", steps=2, control=control)
    assert len(reads) == 4


def test_none_is_kept_where_memory_is_short(model_folder, files, reads) -> None:
    pipe = load(model_folder)
    pipe.plan = Plan(tile=64)
    for _ in range(2):
        pipe.generate("a", steps=1, control=Control(files[0], files[2]))
        assert not pipe.nets
    assert len(reads) == 2
