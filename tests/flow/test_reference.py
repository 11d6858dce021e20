"""Guided trajectories, skip-layer guidance included, equal the original's, by either solver."""

import json

import pytest
import torch
from safetensors import safe_open

from flow import SkipLayer, guided, sigmas, skip_layer, solve
from flow.solvers import SOLVERS
from mmdit import MMDiT, MMDiTConfig
from sd35.verify.sinusoids import stand_in

PREFIX = "weights/base/model.diffusion_model."


@pytest.fixture(scope="module")
def original(shared_reference, original_sinusoids):
    """The stored run and its model, (tensors, config, model)."""
    folder = shared_reference / "parity"
    with safe_open(folder / "guidance_cfg_slg.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    with safe_open(folder / "controlnet_8b_like.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118
        weights = {name.removeprefix(PREFIX): file.get_tensor(name).float() for name in names}
    model = MMDiT(MMDiTConfig.from_shapes({name: tensor.shape for name, tensor in weights.items()}))
    model.load_state_dict(weights)
    stand_in(model.t_embedder.mlp, original_sinusoids(tensors["in/sigmas"]))
    return tensors, config, model.eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_guided_trajectory_is_the_originals(original, counted, solver):
    tensors, config, model = original
    cond = (tensors["in/context_cond"], tensors["in/y_cond"])
    uncond = (tensors["in/context_uncond"], tensors["in/y_uncond"])
    skipped = counted(lambda x, sigma: model(x, sigma, *cond, skip_layers=config["slg_layers"]))
    settings = SkipLayer(
        config["slg_scale"], config["slg_start"], config["slg_end"], tuple(config["slg_layers"])
    )
    table = sigmas(config["steps"], config["shift"])
    assert torch.equal(table, tensors["in/sigmas"])
    velocity = guided(
        lambda x, sigma: model(x, sigma, *cond),
        lambda x, sigma: model(x, sigma, *uncond),
        config["cond_scale"],
        adjust=[skip_layer(skipped, settings, table)],
    )
    found = torch.cat([step.x for step in SOLVERS[solver].run(velocity, tensors["in/noise"], table)])
    golden = tensors[f"out/{solver}_slg_trajectory"][1:]
    # Eight times the rounding of one step, guided: 4.5 times the difference of two velocities.
    assert (found - golden).abs().max() <= 5e-6 * golden.abs().max()
    ran = [step for name, step in config["steps_where_skip_pass_ran"] if name == solver]
    assert skipped.sigmas == pytest.approx(table[ran].tolist())


def test_another_scale_would_show(original):
    tensors, config, model = original
    table = tensors["in/sigmas"]
    velocity = guided(
        lambda x, sigma: model(x, sigma, tensors["in/context_cond"], tensors["in/y_cond"]),
        lambda x, sigma: model(x, sigma, tensors["in/context_uncond"], tensors["in/y_uncond"]),
        config["cond_scale"],  # and no skip-layer guidance
    )
    golden = tensors["out/euler_slg_trajectory"][-1:]
    assert (solve(velocity, tensors["in/noise"], table) - golden).abs().max() > 0.01 * golden.abs().max()
