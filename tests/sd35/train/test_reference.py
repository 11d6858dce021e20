"""Losses, gradients and weights after three steps, against the peers' own training scripts."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import weights
from mmdit.model import spread
from sd35.train.data import Batch
from sd35.train.dreambooth import preserved
from sd35.train.ema import Average, ema_decay
from sd35.train.fresh import fresh_lora
from sd35.train.loop import Learner
from sd35.train.methods import DreamBoothTraining, LoraTraining
from sd35.train.objective import Draw, velocity_loss
from sd35.train.settings import Training
from sd35.train.targets import target_paths


def stored(folder, name):
    with safe_open(folder / "training" / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


def base_of(folder, name, prefix):
    tensors = load_file(folder / "parity" / f"{name}.safetensors")
    state = {
        key.removeprefix(prefix).removeprefix("model.diffusion_model."): tensor.float()
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
    model = weights.build_mmdit(state)
    model.load_state_dict(state)
    return model


def batch_of(golden, rows):
    return Batch(*(golden[f"in/{name}"][:rows] for name in ("latents", "context", "pooled")), ("",) * rows)


@pytest.fixture(scope="module")
def lora(shared_reference):
    """The scripts' LoRA on their tiny model; its parameters by the scripts' names."""
    golden, config = stored(shared_reference, "lora_step")

    def fresh():
        model = base_of(shared_reference, "mmdit_qknorm_dual", "weights/")
        paths = target_paths(model, ("attention",))
        parameters = fresh_lora(model, {"mmdit": paths}, rank=config["rank"], alpha=float(config["alpha"]))
        named = {}
        for name, parameter in parameters.items():
            part = "lora_A" if name.endswith("down") else "lora_B"
            named[f"{_theirs(name)}.{part}.weight"] = parameter
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(golden[f"weights/lora/{name}"])
        return model, parameters, named

    return golden, config, fresh


def preserved_loss(model, batch, drawn, training, weight):
    """DreamBooth's own way to join the two means, on a batch whose second half is class pictures."""
    halves = [
        (Batch(*(one[rows] for one in batch[:3]), ("",) * 2), Draw(*(one[rows] for one in drawn)))
        for rows in (slice(2), slice(2, None))
    ]

    def of(half):
        return lambda predict, _, __: velocity_loss(predict, *halves[half], training)

    told = DreamBoothTraining(class_prompt=("x",), prior_weight=weight)
    session = SimpleNamespace(loss_of=lambda objective, data=None, apart=0: of(0 if data is None else 1))
    return preserved(session, told, "class")(model, None, 0)


def _theirs(name):
    _, _, block, stream, _, layer, third, _ = name.split(".")
    own = {"qkv": ("to_q", "to_k", "to_v"), "proj": ("to_out.0",)}
    context = {"qkv": ("add_q_proj", "add_k_proj", "add_v_proj"), "proj": ("to_add_out",)}
    names = own if stream == "x_block" else context
    return f"transformer_blocks.{block}.attn.{names[layer][int(third)]}"


def test_the_default_targets_are_those_of_the_scripts(lora) -> None:
    golden, _, fresh = lora
    _, _, named = fresh()
    assert {f"weights/lora/{name}" for name in named} == {
        key for key in golden if key.startswith("weights/lora")
    }


CASES = [
    "plain",
    "precondition",
    "prior",
    "prior_precondition",
    "sigma_sqrt_precondition",
    "cosmap",
    "logit_mean_0.8",
    "mode_prior",
]


@pytest.mark.parametrize("case", CASES)
def test_lora_losses_and_gradients_are_the_scripts(lora, case) -> None:
    golden, config, fresh = lora
    told = config["cases"][case]
    model, _, named = fresh()
    weight = told["weighting"] if told["weighting"] in ("sigma_sqrt", "cosmap") else "none"
    training = Training(weight=weight, precondition=told["precondition"])
    rows = len(golden[f"{case}/sigma"])
    drawn = Draw(golden[f"{case}/noise"], golden[f"{case}/sigma"])
    batch = batch_of(golden, rows)
    if told["prior_preservation"]:
        loss = preserved_loss(model, batch, drawn, training, told["prior_loss_weight"])
    else:
        loss = velocity_loss(model, batch, drawn, training)
    loss.backward()
    assert loss.item() == pytest.approx(golden[f"{case}/loss"].item(), rel=1e-6)
    norms = [named[name].grad.norm() for name in config["grad_norm_order"]]
    assert torch.allclose(torch.stack(norms), golden[f"{case}/grad_norms"], rtol=5e-6, atol=1e-7)
    start = f"{case}/grad/"
    for name in [key.removeprefix(start) for key in golden if key.startswith(start)]:
        expected = golden[start + name]
        error = (named[name].grad - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, name  # float32 angles of the timestep differ by a bit between machines


def test_three_steps_of_a_lora_are_the_scripts(lora) -> None:
    golden, config, fresh = lora
    model, parameters, named = fresh()
    told = config["adamw"]
    training = LoraTraining(
        precondition=True, learning_rate=told["lr"], weight_decay=told["weight_decay"], schedule="constant"
    )

    def loss(step):
        drawn = Draw(golden[f"adamw/step{step}/noise"], golden[f"adamw/step{step}/sigma"])
        return preserved_loss(model, batch_of(golden, 4), drawn, training, 1.0)

    learner = Learner(parameters, training)
    for step in range(3):
        row = learner.gradients(loss, step + 1)
        assert row["loss"] == pytest.approx(golden[f"adamw/step{step}/loss"].item(), rel=2e-6)
        assert row["gradient_norm"] == pytest.approx(
            golden["adamw/grad_norm_before_clip"][step].item(), rel=5e-6
        )
        learner.update(step + 1)
    for name, parameter in named.items():  # Adam makes steps of up to lr out of gradients that are nearly 0
        assert (parameter - golden[f"adamw/after3/{name}"]).abs().max() < 0.04 * told["lr"], name


def test_three_steps_of_a_whole_model_are_the_scripts(shared_reference) -> None:
    golden, config = stored(shared_reference, "finetune_step")
    told = config["optimizer"]
    model = base_of(shared_reference, "controlnet_8b_like", "weights/base/")
    parameters = dict(model.named_parameters())
    training = Training(learning_rate=told["lr"], weight_decay=told["weight_decay"], schedule="constant")
    rows = len(golden["in/latents"])

    def loss(step):
        drawn = Draw(golden[f"step{step}/noise"], golden[f"step{step}/sigma"])
        return velocity_loss(model, batch_of(golden, rows), drawn, training)

    learner = Learner(parameters, training)
    for step in range(3):
        row = learner.gradients(loss, step + 1)
        assert row["loss"] == pytest.approx(golden[f"step{step}/loss"].item(), rel=5e-6)
        assert row["gradient_norm"] == pytest.approx(golden["grad_norm_before_clip"][step].item(), rel=1e-5)
        learner.update(step + 1)
    for name in [key.removeprefix("after3/") for key in golden if key.startswith("after3/")]:
        assert (parameters[name] - golden[f"after3/{name}"]).abs().max() < 0.01 * told["lr"], name


def test_the_average_decays_as_the_peers(shared_reference) -> None:
    golden, config = stored(shared_reference, "ema")
    for name, told in config["schedules"].items():
        power = told.get("power", 2 / 3) if told.get("use_ema_warmup") else None
        options = {"power": power, "inv_gamma": told.get("inv_gamma", 1.0)}
        options |= {"update_after": told.get("update_after_step", 0), "min_decay": told.get("min_decay", 0.0)}
        decays = [ema_decay(step, told["decay"], **options) for step in golden["step"].tolist()]
        assert torch.tensor(decays, dtype=torch.float64).allclose(golden[f"{name}/decay"], rtol=1e-12), name
    run, values = config["run"], golden["run/parameters"].unbind()
    weight = values[0].clone()
    average = Average({"w": weight}, run["decay"], run["power"])
    for step, (value, shadow) in enumerate(zip(values[1:], golden["run/shadow"], strict=True), 1):
        weight.copy_(value)
        average.update(step)
        assert torch.allclose(average.values["w"], shadow, rtol=1e-12, atol=0)


def test_three_steps_of_a_controlnet_are_the_scripts(shared_reference) -> None:
    """Of the released kind, begun at zero; key biases, whose gradient is zero but for rounding, left out."""
    golden, config = stored(shared_reference, "controlnet_step")
    base = base_of(shared_reference, "controlnet_8b_like", "weights/base/").requires_grad_(False)
    tensors = load_file(shared_reference / "parity" / "controlnet_8b_like.safetensors")
    start = "weights/controlnet/"
    state = {key.removeprefix(start): one.float() for key, one in tensors.items() if key.startswith(start)}
    net = weights.build_controlnet(state).float()
    net.load_state_dict(state)
    for name, parameter in net.named_parameters():
        if name.startswith(("controlnet_blocks", "pos_embed_input")):
            torch.nn.init.zeros_(parameter)
    told = config["optimizer"]
    training = Training(
        precondition=True, learning_rate=told["lr"], weight_decay=told["weight_decay"], schedule="constant"
    )
    batch = batch_of(golden, 3)._replace(control=golden["in/control_latents"])

    def predict(x, sigma, context, pooled):
        residuals = spread(net(base, x, sigma, pooled, batch.control), base.config.depth, "diffusers")
        return base(x, sigma, context, pooled, residuals=residuals)

    def loss(step):
        drawn = Draw(golden[f"8b/step{step}/noise"], golden[f"8b/step{step}/sigma"])
        return velocity_loss(predict, batch, drawn, training)

    learner = Learner(dict(net.named_parameters()), training)
    for step in range(3):
        row = learner.gradients(loss, step + 1)
        assert row["loss"] == pytest.approx(golden[f"8b/step{step}/loss"].item(), rel=1e-5)
        assert row["gradient_norm"] == pytest.approx(
            golden["8b/grad_norm_before_clip"][step].item(), rel=1e-5
        )
        with_gradient = {name.split(".")[0] for name, one in net.named_parameters() if one.grad.norm() > 0}
        assert with_gradient == set(config["info"][f"8b/step{step}/parts with a gradient"])
        learner.update(step + 1)
    ours = {"attn.to_out.0": "attn.proj", "ff.net.0.proj": "mlp.fc1", "ff.net.2": "mlp.fc2"}
    ours["norm1.linear"] = "adaLN_modulation.1"
    found = dict(net.named_parameters())
    compared = 0
    for key in [
        key for key in golden if key.startswith("8b/after3/") and ".to_" not in key.split(".to_out")[0]
    ]:
        name = key.removeprefix("8b/after3/")
        for theirs, own in ours.items():
            name = name.replace(theirs, own)
        assert (found[name] - golden[key]).abs().max() < 0.01 * told["lr"], name
        compared += 1
    assert compared == 10
