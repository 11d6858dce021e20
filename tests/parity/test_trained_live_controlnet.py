"""Steps of joint ControlNet training beside diffusers' own, on this processor: nothing is stored.

In float64 the order of sums is 1e-16. AdamW divides gradients as small as 1e-8 by themselves and its eps,
which makes more of it, and in float32 1e-5: see tests/sd35/train/test_reference_controlnet.py.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import weights
from mmdit.model import spread
from sd35.train.data import Batch
from sd35.train.loop import Learner
from sd35.train.objective import Draw, velocity_loss
from sd35.train.settings import Training

RATE, DECAY, STEPS, DEPTH = 1e-2, 1e-2, 3, 2


@pytest.fixture(autouse=True)
def _one_thread_and_no_grad() -> Iterator[None]:
    """With gradients, and on this processor alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """diffusers' transformer, whose folder is "model", and the ControlNet that its script makes of it."""
    for name in ("diffusers", "transformers"):
        pytest.importorskip(name, reason="needs the extra 'reference'")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import diffusers

    torch.manual_seed(0)
    base = diffusers.SD3Transformer2DModel(
        num_layers=4, num_attention_heads=2, attention_head_dim=64, caption_projection_dim=128,
        joint_attention_dim=40, pooled_projection_dim=24, pos_embed_max_size=16, sample_size=16,
        qk_norm="rms_norm",
    ).requires_grad_(False)  # fmt: skip
    base.save_pretrained(tmp_path / "model")
    net = diffusers.SD3ControlNetModel.from_transformer(
        base, num_layers=DEPTH, num_extra_conditioning_channels=0
    )
    return base.double(), net.double()


def test_what_a_joint_controlnet_learns_is_what_diffusers_learns(theirs, joint_controlnet, tmp_path) -> None:
    from reference_capture import float64_statistics

    base, net = theirs
    own_base = weights.load_mmdit(tmp_path / "model", dtype=torch.float64)
    own = joint_controlnet.begun(own_base, DEPTH)
    named = dict(net.named_parameters())
    training = Training(precondition=True, learning_rate=RATE, weight_decay=DECAY, schedule="constant")
    learner = Learner(parameters := dict(own.named_parameters()), training)
    adam = torch.optim.AdamW(named.values(), lr=RATE, betas=(0.9, 0.999), weight_decay=DECAY, eps=1e-8)
    source = torch.Generator().manual_seed(2)
    shape = (2, own_base.config.channels, 8, 6)
    latents, control, *noises = (
        torch.randn(shape, generator=source, dtype=torch.float64) for _ in range(2 + STEPS)
    )
    context = torch.randn(2, 5, own_base.config.context_dim, generator=source, dtype=torch.float64)
    pooled = torch.randn(2, own_base.config.pooled_dim, generator=source, dtype=torch.float64)
    batch = Batch(latents, context, pooled, ("",) * 2)

    def their_loss(drawn: Draw) -> Tensor:
        """The lines of train_controlnet_sd3.py, on noise levels that are given."""
        sigmas = drawn.sigma[:, None, None, None].to(latents)
        noisy = (1.0 - sigmas) * latents + sigmas * drawn.noise
        given = {"encoder_hidden_states": context, "pooled_projections": pooled}
        given["timestep"] = (1000 * drawn.sigma.double()).float()
        residuals = net(noisy, control, **given, return_dict=False)[0]
        prediction = base(noisy, **given, block_controlnet_hidden_states=residuals, return_dict=False)[0]
        return ((prediction * (-sigmas) + noisy - latents) ** 2).reshape(len(latents), -1).mean(1).mean()

    def predict(x, sigma, context, pooled):
        residuals = own(own_base, x, sigma, context, pooled, control)
        return own_base(
            x, sigma, context, pooled, residuals=spread(residuals, own_base.config.depth, "diffusers")
        )

    for step, noise in enumerate(noises):
        drawn = Draw(noise, torch.rand(2, generator=source))
        with float64_statistics():
            expected = their_loss(drawn)
            expected.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        row = learner.gradients(
            lambda _, drawn=drawn: velocity_loss(predict, batch, drawn, training), step + 1
        )
        assert row["loss"] == pytest.approx(expected.item(), rel=1e-12)
        grads = {name: one.grad for name, one in parameters.items() if one.grad is not None}
        learned = {name: one.grad for name, one in named.items() if one.grad is not None and one.grad.any()}
        assert (len(learned) == 2 * DEPTH) == (step == 0)  # begun at zero, only the outputs learn at first
        assert apart({name: joint_controlnet.part_of(name, grads) for name in learned}, learned) < 1e-12
        adam.step()
        adam.zero_grad()
        learner.update(step + 1)
    assert apart({name: joint_controlnet.part_of(name, parameters) for name in named}, named) < 1e-12


def apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The norm of the difference of all, relative to theirs."""
    ours_, theirs_ = (torch.cat([one[name].detach().flatten() for name in theirs]) for one in (ours, theirs))
    return float((ours_ - theirs_).norm() / theirs_.norm())
