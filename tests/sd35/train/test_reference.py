"""Losses, gradients and weights after three steps, against the peers' own scripts: see `peers.py`."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from sd35.train.data import Batch
from sd35.train.dreambooth import preserved
from sd35.train.ema import Average, ema_decay
from sd35.train.fresh import fresh_lora
from sd35.train.methods import DreamBoothTraining, LoraTraining
from sd35.train.objective import Draw, velocity_loss
from sd35.train.settings import Training
from sd35.train.targets import target_paths


@pytest.fixture(params=["float64", "float32", "float32 elsewhere"])
def dtype(request, other_processor):
    """The dtype of a run, here and as another processor would compute it."""
    with other_processor(1) if "elsewhere" in request.param else nullcontext():
        yield getattr(torch, request.param.split()[0])


@pytest.fixture
def lora(peers, shared_reference):
    """The scripts' LoRA on their tiny model; its parameters by the scripts' names."""
    golden, config = peers.stored(shared_reference, "lora_step")

    def fresh(dtype=torch.float32):
        model = peers.base_of(shared_reference, "mmdit_qknorm_dual", "weights/", dtype)
        paths = target_paths(model, ("attention",))
        parameters = fresh_lora(model, {"mmdit": paths}, rank=config["rank"], alpha=float(config["alpha"]))
        named = {}
        for name, parameter in parameters.items():
            part = "lora_A" if name.endswith("down") else "lora_B"
            named[f"{_theirs(name)}.{part}.weight"] = parameter
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(golden[f"weights/lora/{name}"])
        return model, named

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
    _, named = fresh()
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
def test_lora_losses_and_gradients_are_the_scripts(lora, peers, training_sinusoids, dtype, case) -> None:
    golden, config, fresh = lora
    told = config["cases"][case]
    model, named = fresh(dtype)
    weight = told["weighting"] if told["weighting"] in ("sigma_sqrt", "cosmap") else "none"
    training = Training(weight=weight, precondition=told["precondition"])
    sigma = golden[f"{case}/sigma"]
    chance, batch = peers.drawn(golden, case, dtype), peers.batch_of(golden, len(sigma), dtype)
    with peers.reading(training_sinusoids(sigma), model.t_embedder.mlp):
        if told["prior_preservation"]:
            loss = preserved_loss(model, batch, chance, training, told["prior_loss_weight"])
        else:
            loss = velocity_loss(model, batch, chance, training)
        loss.backward()
    assert loss.item() == pytest.approx(golden[f"{case}/loss"].item(), rel=peers.LOSS[dtype])
    gradients = {name: parameter.grad for name, parameter in named.items()}
    norms = torch.stack([gradients[name].double().norm() for name in config["grad_norm_order"]])
    assert torch.allclose(norms, golden[f"{case}/grad_norms"].double(), rtol=peers.LIMITS[dtype], atol=1e-8)
    start = f"{case}/grad/"
    theirs = {key.removeprefix(start): one for key, one in golden.items() if key.startswith(start)}
    peers.assert_gradients(gradients, theirs, dtype)


def test_three_steps_of_a_lora_are_the_scripts(lora, peers, training_sinusoids, dtype) -> None:
    golden, config, fresh = lora
    model, named = fresh(dtype)
    told = config["adamw"]
    training = LoraTraining(
        precondition=True, learning_rate=told["lr"], weight_decay=told["weight_decay"], schedule="constant"
    )

    def loss(step):
        chance = peers.drawn(golden, f"adamw/step{step}", dtype)
        with peers.reading(training_sinusoids(chance.sigma), model.t_embedder.mlp):
            return preserved_loss(model, peers.batch_of(golden, 4, dtype), chance, training, 1.0)

    def check(step, row):
        assert row["loss"] == pytest.approx(golden[f"adamw/step{step}/loss"].item(), rel=peers.LOSS[dtype])
        norm = golden["adamw/grad_norm_before_clip"][step].item()
        assert row["gradient_norm"] == pytest.approx(norm, rel=2 * peers.LIMITS[dtype])

    gradients = peers.train(named, training, loss, check)
    theirs = {name: golden[f"adamw/after3/{name}"] for name in named}
    errors = peers.reckoned(gradients, dtype)
    assert peers.assert_weights(named, theirs, gradients, errors, told["lr"]) < 1e-6


def without_key_bias(name, tensor):
    """A parameter, but of a bias of queries, keys and values the first and the last."""
    return torch.cat(tensor.chunk(3)[::2]) if name.endswith("qkv.bias") else tensor


def test_three_steps_of_a_whole_model_are_the_scripts(
    peers, shared_reference, training_sinusoids, dtype
) -> None:
    golden, config = peers.stored(shared_reference, "finetune_step")
    told = config["optimizer"]
    model = peers.base_of(shared_reference, "controlnet_8b_like", "weights/base/", dtype)
    parameters = dict(model.named_parameters())
    training = Training(learning_rate=told["lr"], weight_decay=told["weight_decay"], schedule="constant")
    batch = peers.batch_of(golden, len(golden["in/latents"]), dtype)

    def loss(step):
        chance = peers.drawn(golden, f"step{step}", dtype)
        with peers.reading(training_sinusoids(chance.sigma), model.t_embedder.mlp):
            return velocity_loss(model, batch, chance, training)

    norm = golden["grad_norm_before_clip"]

    def check(step, row):
        assert row["loss"] == pytest.approx(golden[f"step{step}/loss"].item(), rel=peers.LOSS[dtype])
        assert row["gradient_norm"] == pytest.approx(norm[step].item(), rel=2 * peers.LIMITS[dtype])

    gradients = peers.train(parameters, training, loss, check)
    start, clipped = "step0/grad/", norm[0].clamp(min=1)
    theirs = {key.removeprefix(start): one / clipped for key, one in golden.items() if start in key}
    peers.assert_gradients(gradients[0], theirs, dtype)
    names = config["keys_of_sums_and_norms"]
    norms = torch.stack([gradients[0][name].double().norm() for name in names])
    assert torch.allclose(norms, golden["step0/grad_norms"] / clipped, rtol=peers.LIMITS[dtype], atol=1e-8)
    theirs = {key.removeprefix("after3/"): one for key, one in golden.items() if key.startswith("after3/")}
    errors = peers.reckoned(gradients, dtype, later=3e-5)
    peers.assert_weights(parameters, theirs, gradients, errors, told["lr"])
    # A key bias whose first gradient, 2e-9, is rounding below AdamW's eps moves by 1e-5: it is not counted.
    found, expected = (
        torch.cat([without_key_bias(name, one[name].detach()).flatten() for name in theirs])
        for one in (parameters, theirs)
    )
    assert peers.apart(found, expected) < 1e-6
    norms = torch.stack([parameters[name].detach().double().norm() for name in names])
    assert torch.allclose(norms.square(), golden["after3_sums"][:, 1], rtol=2 * peers.LIMITS[dtype])


def test_the_average_decays_as_the_peers(peers, shared_reference) -> None:
    golden, config = peers.stored(shared_reference, "ema")
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
