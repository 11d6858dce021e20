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
from sd35.train.memory import KERNELS, LOST, Memory, memory_of, memory_of_vae
from sd35.train.methods import ControlNetTraining, DreamBoothTraining, FullTraining, LoraTraining, VaeTraining
from sd35.train.objective import draw, velocity_loss
from sd35.train.targets import target_paths
from sd35.train.vae import vae_loss
from vae import VAE, VAEConfig

CPU, TEXT, SIDE = torch.device("cpu"), 40, 128
CONFIG = MMDiTConfig(
    dim=256, depth=2, num_heads=4, pos_embed_size=32, context_dim=64, pooled_dim=32, dual_blocks=(0,)
)
WAYS = {
    "lora, two pictures": (torch.bfloat16, LoraTraining(rank=8, batch_size=2)),
    "dreambooth": (torch.float32, DreamBoothTraining(rank=8, class_prompt=("a dog",))),
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
    means = range(2 if isinstance(told, DreamBoothTraining) else 1)
    with alive() as counted:
        learner = Learner(parameters, told)
        for step in (1, 2):
            learner.gradients(lambda _: sum(velocity_loss(predict, batch, chance, told) for _ in means), step)
            learner.update(step)
    taken = said.weights + counted.peak
    assert said.tensors == pytest.approx(taken, rel=0.15)


@pytest.mark.parametrize("decoder_only", [True, False])
def test_what_is_said_of_an_autoencoder_is_what_it_takes(alive, decoder_only) -> None:
    told = VaeTraining(decoder_only=decoder_only, batch_size=2)
    config = VAEConfig(latent_channels=16, channels=(32, 32, 64), num_res_blocks=1)
    vae = random_module(lambda: VAE(config), CPU, torch.float32)
    vae.decoder.requires_grad_(True)
    vae.encoder.requires_grad_(not decoder_only)
    parameters = {name: one for name, one in vae.named_parameters() if one.requires_grad}
    chance = torch.Generator().manual_seed(0)

    def loss(image):
        return vae_loss(vae, image, told, chance)[0]

    said = memory_of_vae(vae, parameters, (96, 64), told, loss)
    images = torch.zeros(2, 3, 64, 96)
    with alive() as counted:
        learner = Learner(parameters, told)
        for step in (1, 2):
            learner.gradients(lambda _: loss(images), step)
            learner.update(step)
    assert said.tensors == pytest.approx(said.weights + counted.peak, rel=0.15)


def test_a_process_has_more_than_its_tensors_on_a_processor() -> None:
    """On a card, what its driver and kernels take is not said."""
    taken = {"weights": 1e9, "training": 2e9, "gradients": 3e9, "activations": 4e9}
    assert Memory(**taken).total == 7e9
    assert Memory(**taken, on_cpu=True).total == LOST * 7e9 + KERNELS
    assert str(Memory(**taken, accumulates=True)) == (
        "about 10 GB: 1 of weights, 2 of what trains them, 7 of activations and gradients"
    )
