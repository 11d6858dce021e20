"""Steps of LoRA training beside diffusers' and peft's own, on this processor: nothing is stored.

In float64 the order of sums is 1e-16, so that a difference of 1e-12 would be one of formulas. In float32 each
of the two lies some 7e-7 from that, and AdamW widens it to 1.6e-6 in three steps.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import weights
from sd35.train.data import Batch
from sd35.train.dreambooth import preserved
from sd35.train.fresh import fresh_lora
from sd35.train.loop import Learner
from sd35.train.methods import DreamBoothTraining
from sd35.train.objective import Draw, velocity_loss
from sd35.train.targets import target_paths

LIMITS = {torch.float64: 1e-12, torch.float32: 4e-6}
RATE, DECAY, STEPS = 1e-3, 1e-4, 3
LAYERS = {"qkv": ("to_q", "to_k", "to_v"), "proj": ("to_out.0",)}
ADDED = {"qkv": ("add_q_proj", "add_k_proj", "add_v_proj"), "proj": ("to_add_out",)}


@pytest.fixture(autouse=True)
def _one_thread_and_no_grad(one_thread: None) -> None:
    """With gradients, and on this processor alone."""


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch):
    for name in ("diffusers", "transformers", "peft"):
        pytest.importorskip(name, reason="needs the extra 'reference'")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import diffusers

    torch.manual_seed(0)
    return diffusers.SD3Transformer2DModel(
        num_layers=3, num_attention_heads=2, attention_head_dim=64, caption_projection_dim=128,
        joint_attention_dim=40, pooled_projection_dim=24, pos_embed_max_size=16, sample_size=16,
        qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip


def spelled(name: str) -> str:
    """Of one of our parameters, peft's name."""
    _, _, block, stream, _, layer, third, role = name.split(".")
    own = (LAYERS if stream == "x_block" else ADDED)[layer][int(third)]
    matrix = {"down": "lora_A", "up": "lora_B"}[role]
    return f"transformer_blocks.{block}.attn.{own}.{matrix}.default.weight"


def chance(config, dtype) -> tuple[Batch, list[Draw]]:
    """Two pictures of a subject and two of its class, and the noise of each step."""
    source = torch.Generator().manual_seed(2)
    shape = (4, config.channels, 8, 6)
    context = torch.randn(4, 5, config.context_dim, generator=source).to(dtype)
    pooled = torch.randn(4, config.pooled_dim, generator=source).to(dtype)
    batch = Batch(torch.randn(shape, generator=source).to(dtype), context, pooled, ("",) * 4)
    noise = [torch.randn(shape, generator=source).to(dtype) for _ in range(STEPS)]
    return batch, [Draw(one, torch.rand(4, generator=source)) for one in noise]


def their_loss(model, batch: Batch, draw: Draw, *, precondition: bool, prior: float | None) -> Tensor:
    """The lines of train_dreambooth_lora_sd3.py, on noise levels that are given."""
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigmas = draw.sigma[:, None, None, None].to(batch.latents)
    noisy = (1.0 - sigmas) * batch.latents + sigmas * draw.noise
    timesteps = (1000 * draw.sigma.double()).float()
    prediction = model(noisy, batch.context, batch.pooled, timesteps).sample
    if precondition:
        prediction = prediction * (-sigmas) + noisy
    weighting = compute_loss_weighting_for_sd3(weighting_scheme="logit_normal", sigmas=sigmas)
    target = batch.latents if precondition else draw.noise - batch.latents
    losses = (weighting * (prediction - target) ** 2).reshape(len(target), -1).mean(1)
    if prior is None:
        return losses.mean()
    instance, of_class = losses.chunk(2)
    return instance.mean() + prior * of_class.mean()


def our_loss(model, batch: Batch, draw: Draw, training: DreamBoothTraining, prior: float | None) -> Tensor:
    """The same by `velocity_loss` and DreamBooth's `preserved`."""
    if prior is None:
        return velocity_loss(model, batch, draw, training)

    class Session:
        """Whose second half of a batch is class pictures."""

        def loss_of(self, objective, data=None, apart=0):
            rows = slice(2) if data is None else slice(2, None)
            part = Batch(*(one[rows] for one in batch[:3]), ("",) * 2)
            return lambda predict, *_: objective(predict, part, Draw(*(one[rows] for one in draw)), training)

    return preserved(Session(), training, "class")(model, None, 0)


@pytest.mark.parametrize("prior", [None, 0.7])
@pytest.mark.parametrize("precondition", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_learned_is_what_the_peers_learn(theirs, tmp_path, dtype, precondition, prior) -> None:
    from peft import LoraConfig
    from reference_capture import float64_statistics

    theirs.save_pretrained(tmp_path / "model")
    ours, model = weights.load_mmdit(tmp_path / "model", dtype=dtype), theirs.to(dtype).requires_grad_(False)
    parameters = fresh_lora(ours, {"mmdit": target_paths(ours, ("attention",))}, rank=4, alpha=4.0)
    targets = [name for names in (LAYERS, ADDED) for one in names.values() for name in one]
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=[f"attn.{name}" for name in targets]))
    named = {name: one for name, one in model.named_parameters() if one.requires_grad}
    found = {name: named[spelled(name)] for name in parameters}
    assert len(named) == len(found)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.normal_(0, 0.1, generator=source)
            found[name].copy_(parameter)

    told = {"learning_rate": RATE, "weight_decay": DECAY, "schedule": "constant", "class_prompt": ("x",)}
    training = DreamBoothTraining(precondition=precondition, prior_weight=prior or 1.0, **told)
    learner = Learner(parameters, training)
    adam = torch.optim.AdamW(found.values(), lr=RATE, betas=(0.9, 0.999), weight_decay=DECAY, eps=1e-8)
    batch, draws = chance(ours.config, dtype)
    for step, draw in enumerate(draws):
        with float64_statistics():
            expected = their_loss(model, batch, draw, precondition=precondition, prior=prior)
            expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(found.values(), 1.0)
        row = learner.gradients(lambda _, draw=draw: our_loss(ours, batch, draw, training, prior), step + 1)
        assert row["loss"] == pytest.approx(expected.item(), rel=LIMITS[dtype])
        assert row["gradient_norm"] == pytest.approx(norm.item(), rel=LIMITS[dtype])
        assert apart(gradients(parameters), gradients(found)) < LIMITS[dtype]
        adam.step()
        adam.zero_grad()
        learner.update(step + 1)
    assert apart(parameters, found) < LIMITS[dtype]


def gradients(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.grad for name, one in parameters.items()}


def apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The norm of the difference of all together, relative to that of what is expected."""
    found, expected = (torch.cat([one[name].flatten() for name in theirs]) for one in (ours, theirs))
    return float((found - expected).norm() / expected.norm())
