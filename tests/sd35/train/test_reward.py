"""DiffusionNFT and Flow-GRPO: losses and gradients of the authors' own lines, and a run that is rewarded."""

import json

import pytest
import torch
from safetensors import safe_open

import sd35
from sd35.train.fresh import fresh_lora
from sd35.train.reward import old_decay, train_grpo, train_nft
from sd35.train.reward_loss import Taken, advantages, grpo_loss, grpo_step, nft_loss
from sd35.train.targets import target_paths


@pytest.fixture(scope="module")
def golden(shared_reference):
    with safe_open(shared_reference / "training" / "rl.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


@pytest.mark.parametrize("case", ["beta_1", "beta_0.1", "positive_only", "binary"])
def test_nft_is_the_authors(golden, case) -> None:
    stored, config = golden
    beta, kl, _ = config["nft"]["cases"][case]
    advantage = stored["nft/advantages"]
    advantage = {"positive_only": advantage.clamp(0, 5), "binary": advantage.sign()}.get(case, advantage)
    velocity = stored["nft/velocity_new"].clone().requires_grad_(True)
    others = (stored[f"nft/{name}"] for name in ("velocity_old", "velocity_ref", "x", "data", "sigma"))
    loss = nft_loss(velocity, *others, advantage, beta=beta, kl=kl)
    loss.backward()
    assert loss.item() == pytest.approx(stored[f"nft/{case}/loss"].item(), rel=1e-6)
    expected = stored[f"nft/{case}/grad_velocity"]
    assert (velocity.grad - expected).abs().max() < 1e-6 * expected.abs().max() + 1e-9


def test_the_old_policy_decays_as_the_authors_does(golden) -> None:
    stored, _ = golden
    decays = [old_decay(step) for step in stored["nft/old_decay_step"].tolist()]
    assert decays == pytest.approx(stored["nft/old_decay_type_1"].tolist())


def test_advantages_are_of_each_prompt(golden) -> None:
    stored, config = golden
    found = advantages(stored["grpo/rewards"], config["grpo"]["prompts"])
    assert torch.allclose(found, stored["grpo/advantages"], rtol=1e-12)


@pytest.mark.parametrize("case", ["clip_1e-4", "clip_0.2"])
def test_grpo_is_the_authors(golden, case) -> None:
    stored, config = golden
    told, sigmas, index = config["grpo"], stored["grpo/sigmas"], stored["grpo/step_index"]
    velocity = stored["grpo/velocity_new"].clone().requires_grad_(True)
    where = stored["grpo/x"], stored["grpo/x_next"], sigmas[index], sigmas[index + 1], sigmas[1]
    old, new, reference = (
        grpo_step(each, *where, told["noise_level"])
        for each in (stored["grpo/velocity_old"], velocity, stored["grpo/velocity_ref"])
    )
    assert torch.allclose(old.mean, stored["grpo/mean_old"], rtol=1e-5, atol=1e-5)
    assert torch.allclose(old.log_prob, stored["grpo/log_prob_old"], rtol=1e-5)
    assert torch.allclose(new.log_prob, stored[f"grpo/{case}/log_prob_new"], rtol=1e-5)
    loss = grpo_loss(
        new,
        stored["grpo/log_prob_old"],
        Taken(*reference),
        stored["grpo/advantages"].float(),
        clip=told[case]["clip_range"],
        kl=told[case]["beta"],
    )
    loss.backward()
    assert loss.item() == pytest.approx(stored[f"grpo/{case}/loss"].item(), rel=2e-5, abs=1e-6)
    expected = stored[f"grpo/{case}/grad_velocity"]
    assert (velocity.grad - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("train", "more"), [(train_nft, {}), (train_nft, {"groups": 2}), (train_grpo, {})])
def test_rounds_draw_judge_and_step(model_folder, train, more) -> None:
    """Every round draws, judges and takes one step; whether pictures become better takes hundreds of them."""
    pipe = sd35.load(model_folder)
    wanted = torch.zeros(1, 3, 32, 32)
    paths = {"mmdit": target_paths(pipe.mmdit, ("blocks",))}
    parameters = fresh_lora(pipe.mmdit, paths, rank=4, alpha=4.0)
    before = {name: one.detach().clone() for name, one in parameters.items()}
    seen, judged = [], []

    def reward(images, prompts):
        judged.append(prompts)
        return -(images - wanted).square().flatten(1).mean(1)

    train(
        pipe,
        parameters,
        ["a red circle", "a star"],
        reward,
        rounds=2,
        steps=3,
        pictures=4,
        watch=lambda number, mean: seen.append(mean),
        **more,
    )
    assert len(seen) == 2
    turns = 2 * more.get("groups", 1)
    assert judged == [[("a red circle", "a star")[turn % 2]] * 4 for turn in range(turns)]
    moved = [(parameters[name] - one).abs().max() for name, one in before.items() if name.endswith("up")]
    assert 0 < max(moved) < 0.01
    assert all(one.isfinite().all() for one in parameters.values())
