"""Predictions turned into one another, on every path and at its ends."""

import math
from itertools import product
from typing import get_args

import pytest
import torch

from flow import PATHS, FlowError, Prediction, Rectified, convert, probability_flow, solve

KINDS = get_args(Prediction)
EVERY = [*PATHS.values(), Rectified(0.01)]


@pytest.mark.parametrize(
    ("source", "wanted"), list(product(("velocity", "score", "noise", "data"), repeat=2))
)
def test_predictions_of_an_exact_model_are_the_references(path_goldens, stored, source, wanted):
    """Of a mixture of two normal distributions, whose four exact predictions are stored."""
    name, path = stored
    keys = {"velocity": "mix_velocity", "score": "mix_score", "noise": "mix_noise", "data": "mix_denoised"}
    for row, sigma in enumerate(path_goldens["in/level"]):
        if source == "noise" and wanted != "score" and float(PATHS["rectified"].scales(sigma).data) < 0.01:
            continue  # x is nearly all noise, and what is left of the data is multiplied a thousand times
        given, expected = (path_goldens[f"{name}/{keys[kind]}"][row] for kind in (source, wanted))
        x = path_goldens["in/probe"]
        found = convert(given, x, sigma, source=source, target=wanted, path=path)
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-9), float(sigma)


def test_v_is_that_of_diffusers_on_its_schedules(path_goldens):
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        angle = path_goldens[f"ddpm/{name}/alphas_cumprod"].double().sqrt().acos()
        data, noise = path_goldens["in/data"][:1], path_goldens["in/noise"][:1]
        sigma = angle / (math.pi / 2)  # where the quarter circle has the same alpha
        x = torch.cat([PATHS["vp_cosine"].interpolate(data, noise, float(one)) for one in sigma])
        noises = noise.expand(len(x), 2)
        v = convert(noises, x, sigma, source="noise", target="v", path="vp_cosine")
        exact = angle.cos()[:, None] * noise - angle.sin()[:, None] * data
        assert torch.allclose(v, exact, atol=1e-6)
        assert torch.allclose(v, path_goldens[f"ddpm/{name}/v_prediction"].double(), atol=2e-3)


@pytest.mark.parametrize("path", EVERY, ids=str)
@pytest.mark.parametrize(("source", "wanted"), list(product(KINDS, repeat=2)))
def test_there_and_back(path, source, wanted):
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor([0.02, 0.3, 0.5, 0.8, 0.98], dtype=torch.float64)
    x, velocity = path.interpolate(data, noise, sigma), path.target(data, noise, sigma)
    first = convert(velocity, x, sigma, target=source, path=path)
    second = convert(first, x, sigma, source=source, target=wanted, path=path)
    back = convert(second, x, sigma, source=wanted, target="velocity", path=path)
    assert torch.allclose(back, velocity, rtol=1e-8, atol=1e-8)
    assert torch.allclose(convert(velocity, x, sigma, target="data", path=path), data, atol=1e-10)
    assert torch.allclose(convert(velocity, x, sigma, target="noise", path=path), noise, atol=1e-10)


def test_formulas_of_the_straight_path():
    x, v, s = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0.1, 0.4, 0.7, 0.9])
    level = s[:, None]
    assert torch.allclose(convert(v, x, s, target="data"), x - level * v, atol=1e-6)
    assert torch.allclose(convert(v, x, s, target="noise"), x + (1 - level) * v, atol=1e-6)
    assert torch.allclose(convert(v, x, s), -(x + (1 - level) * v) / level, atol=1e-5)


def test_drift_of_the_diffusion_and_score_are_the_velocity():
    x, score = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    for path in EVERY:
        f, g2 = path.diffusion(torch.tensor(0.4, dtype=torch.float64))
        flow = probability_flow(lambda x, sigma: score, "score", path)
        assert torch.allclose(flow(x, torch.full((3,), 0.4)), f * x - g2 / 2 * score, rtol=1e-6)


@pytest.mark.parametrize(
    ("source", "wanted", "sigma", "answer"),
    [
        ("velocity", "data", 1.0, "data"),
        ("velocity", "noise", 0.0, "noise"),
        ("velocity", "v", 0.0, "noise"),
        ("noise", "velocity", 0.0, "velocity"),
        ("data", "velocity", 1.0, "velocity"),
        ("noise", "score", 1.0, "score"),
        ("v", "velocity", 1.0, "velocity"),
        ("noise", "data", 1.0, None),
        ("noise", "velocity", 1.0, None),
        ("score", "v", 1.0, None),
        ("data", "noise", 0.0, None),
        ("data", "score", 0.0, None),
        ("velocity", "score", 0.0, None),
        ("score", "noise", 0.0, None),
    ],
)
@pytest.mark.parametrize("name", ["rectified", "vp_cosine"])
def test_at_its_ends_a_path_tells_what_it_can(name, source, wanted, sigma, answer):
    path, level = PATHS[name], torch.full((2,), sigma)
    data, noise = torch.randn(2, 3), torch.randn(2, 3)
    x, velocity = path.interpolate(data, noise, level), path.target(data, noise, level)
    kinds = {"data": data, "noise": noise, "velocity": velocity, "score": -noise}
    kinds["v"] = noise if sigma == 0 else -data
    if answer is None:
        with pytest.raises(FlowError, match=f"at sigma {sigma:g} .* {source} does not say what the {wanted}"):
            convert(kinds[source], x, level, source=source, target=wanted, path=path)
    else:
        found = convert(kinds[source], x, level, source=source, target=wanted, path=path)
        assert torch.allclose(found, kinds[answer], atol=1e-5)


def test_a_model_that_predicts_noise_is_followed_by_every_solver_of_the_flow(path_goldens):
    """Exact noise of Gaussian data on the path of DDPM: the flow ends where the closed form says."""
    path, mean, std = PATHS["vp_linear"], 0.7, 1.4

    def noise(x, sigma):
        a, n, _, _ = path.at(sigma, x)
        return n * (x - a * mean) / (a.square() * std**2 + n.square())

    levels = path_goldens["in/level"].flip(0)
    start = path.scales(levels[0]).noise * path_goldens["in/probe"]
    dense = torch.linspace(float(levels[0]), float(levels[-1]), 201, dtype=torch.float64)
    end = solve(probability_flow(noise, "noise", path), start, dense, "rk4")
    assert torch.allclose(end, path_goldens["vp_linear_beta/gauss_flow_from_last_level"][0], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: convert(x, x, 0.5, source="epsilon"), "source must be one of velocity, score"),
        (lambda x: convert(x, x, 0.5, target="x0"), "target must be one of"),
        (lambda x: convert(x[:1], x, 0.5), "shaped as x"),
        (lambda x: convert(x, x, 500.0), "timestep"),
        (lambda x: convert(x, x, torch.tensor([0.1, 0.2, 0.3])), r"\(2,\)"),
        (lambda x: convert(x, x, float("nan")), r"\[0, 1\]"),
    ],
)
def test_bad_requests_are_named(call, message):
    with pytest.raises(FlowError, match=message):
        call(torch.ones(2, 3))
