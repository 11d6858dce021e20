"""What a run says of memory, against the tensors that are alive while it learns; the table of the documents
is of whole processes: benchmarks/training_memory.py."""

import sys
from pathlib import Path

import pytest
import torch

from mmdit import MMDiT, MMDiTConfig
from sd35.bench.parts import random_module
from sd35.train.blocks import prepare_blocks
from sd35.train.controlnet import controlled, controlnet_of
from sd35.train.data import Batch
from sd35.train.fresh import fresh_lora
from sd35.train.loop import Learner
from sd35.train.memory import memory_of
from sd35.train.methods import ControlNetTraining, FullTraining, LoraTraining
from sd35.train.objective import draw, velocity_loss
from sd35.train.targets import target_paths

CPU, TEXT, SIDE = torch.device("cpu"), 40, 128
CONFIG = MMDiTConfig(
    dim=256, depth=2, num_heads=4, pos_embed_size=32, context_dim=64, pooled_dim=32, dual_blocks=(0,)
)
WAYS = {
    "lora, two pictures": (torch.bfloat16, LoraTraining(rank=8, batch_size=2)),
    "controlnet": (torch.float32, ControlNetTraining()),
    "all weights, average": (torch.bfloat16, FullTraining(ema=0.99, checkpoint_blocks=True)),
    "all weights, muon": (torch.float32, FullTraining(optimizer="muon", accumulate=2)),
}


@pytest.fixture
def alive(monkeypatch):
    """The count of bytes of benchmarks/peaks.py."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "peaks", raising=False)
    import peaks

    return peaks.Alive


@pytest.mark.parametrize("name", WAYS)
def test_what_is_said_is_what_is_taken(alive, name) -> None:
    dtype, told = WAYS[name]
    mmdit = random_module(lambda: MMDiT(CONFIG), CPU, dtype).requires_grad_(False)
    net, predict = None, mmdit
    if isinstance(told, LoraTraining):
        paths = {"mmdit": target_paths(mmdit, told.target)}
        parameters = fresh_lora(mmdit, paths, rank=told.rank, alpha=8.0)
    elif isinstance(told, ControlNetTraining):
        net = controlnet_of(mmdit).requires_grad_(True)
        parameters = dict(net.named_parameters())
        predict = lambda x, *rest: controlled(mmdit, net, Batch(x, *rest[1:], ("",), x))(x, *rest)  # noqa: E731
    else:
        parameters = dict(mmdit.requires_grad_(True).named_parameters())
    said = memory_of(mmdit, parameters, (SIDE, SIDE, TEXT), told, predict)
    prepare_blocks(mmdit, told)
    side, count = SIDE // 8, told.batch_size
    batch = Batch(
        torch.randn(count, 16, side, side),
        torch.randn(count, TEXT, 64, dtype=dtype),
        torch.randn(count, 32, dtype=dtype),
        ("",) * count,
    )
    chance = draw(batch.latents.shape, told, 0)
    with alive() as counted:
        learner = Learner(parameters, told)
        for step in (1, 2):
            learner.gradients(lambda _: velocity_loss(predict, batch, chance, told), step)
            learner.update(step)
    taken = said.weights + counted.peak
    assert said.total == pytest.approx(taken, rel=0.15)
