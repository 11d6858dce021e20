"""The training objective and its noise levels."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flow import PATHS, FlowError, cfm_loss, loss_weights, sample_sigmas


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_loss_is_zero_for_the_conditional_velocity_and_known_for_zero():
    data, noise, sigma = (
        torch.randn(3, 4, 5, generator=seeded()),
        torch.ones(3, 4, 5),
        torch.tensor([0.0, 0.4, 1.0]),
    )
    assert cfm_loss(lambda x, s: noise - data, data, noise=noise, sigma=sigma) == 0
    loss = cfm_loss(lambda x, s: torch.zeros_like(x), data, noise=noise, sigma=sigma)
    assert loss == pytest.approx(float((noise - data).square().mean()), rel=1e-6)


def test_velocity_sees_the_point_on_the_path():
    data, noise, sigma = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([0.25, 0.75])
    seen = []
    cfm_loss(lambda x, s: seen.append((x, s)) or x, data, noise=noise, sigma=sigma)
    assert torch.equal(seen[0][0], sigma[:, None].expand(2, 3))
    assert torch.equal(seen[0][1], sigma)


def test_same_generator_same_loss_and_gradient_flows():
    weight = torch.tensor(0.5, requires_grad=True)
    data = torch.randn(8, 6, generator=seeded())
    first, second = (cfm_loss(lambda x, s: weight * x, data, generator=seeded(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, cfm_loss(lambda x, s: weight * x, data, generator=seeded(8)))
    first.backward()
    assert weight.grad is not None


def test_loss_of_a_bf16_model_is_taken_in_float32():
    data, noise = torch.zeros(1, 2), torch.full((1, 2), 1.001)
    loss = cfm_loss(lambda x, s: noise.bfloat16(), data, noise=noise, sigma=torch.tensor([0.5]))
    assert loss.dtype == torch.float32
    assert loss == pytest.approx(0.001**2, rel=1e-3)  # in bf16 the difference would vanish


def test_minimiser_is_the_mean_velocity():
    # For data ~ N(0, 1) the best linear answer a·x at one sigma is Cov(noise - data, x) / Var(x).
    data = torch.randn(200_000, 1, generator=seeded(1))
    sigma = torch.full((len(data),), 0.3)
    best = (0.3 - 0.7) / (0.3**2 + 0.7**2)
    losses = [
        float(cfm_loss(lambda x, s, a=a: a * x, data, sigma=sigma, generator=seeded(2)))
        for a in (best - 0.1, best, best + 0.1)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_logit_normal_has_its_mean_and_spread():
    logits = torch.logit(sample_sigmas(100_000, seeded(), location=0.5, scale=0.7).double())
    assert logits.mean() == pytest.approx(0.5, abs=0.01)
    assert logits.std() == pytest.approx(0.7, abs=0.01)


def test_shift_moves_the_median_as_the_schedule_does():
    drawn = sample_sigmas(100_001, seeded(), schedule_shift=3.0)
    assert drawn.median() == pytest.approx(0.75, abs=0.005)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29])
def test_mode_density_keeps_to_the_unit_interval(scale):
    drawn = sample_sigmas(10_000, seeded(), density="mode", scale=scale)
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_cosmap_has_the_density_of_the_paper():
    # pi(t) = 2 / (pi - 2 pi t + 2 pi t^2) (eq. 21), whose mass below 1/4 is 2/pi * atan(1/3).
    drawn = sample_sigmas(200_000, seeded(), density="cosmap")
    assert (drawn < 0.25).float().mean() == pytest.approx(2 / math.pi * math.atan(1 / 3), abs=0.005)


def test_uniform_is_uniform():
    drawn = sample_sigmas(100_000, seeded(), density="uniform").sort().values
    assert (drawn - torch.linspace(0, 1, 100_000)).abs().max() < 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cfm_loss(lambda x, s: x, torch.zeros(2, 3)), "generator="),
        (lambda: cfm_loss(lambda x, s: x, torch.zeros(2, 3), noise=torch.zeros(2, 3)), "generator="),
        (
            lambda: cfm_loss(lambda x, s: x[:1], torch.zeros(2, 3), generator=seeded()),
            r"must return \(2, 3\)",
        ),
        (
            lambda: cfm_loss(lambda x, s: x, torch.zeros(2, 3), noise=torch.zeros(3), generator=seeded()),
            "noise must be",
        ),
        (lambda: sample_sigmas(2, seeded(), density="beta"), "logit_normal"),
        (lambda: sample_sigmas(2, seeded(), density="mode", scale=2.0), "scale of density mode"),
        (lambda: sample_sigmas(2, seeded(), scale=-1.0), "scale of density logit_normal"),
    ],
)
def test_bad_requests_are_named(call, message):
    with pytest.raises(FlowError, match=message):
        call()


@pytest.fixture(scope="module")
def densities(shared_reference):
    with safe_open(shared_reference / "training" / "densities.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["config"])["cases"]


DRAWN = {"logit_normal": "logit_normal", "mode": "mode", "cosmap": "uniform", "sigma_sqrt": "uniform"}
"""What diffusers draws for each of its weighting schemes."""


@pytest.mark.parametrize("shift", [1, 3])
def test_levels_are_those_that_diffusers_looks_up(densities, shift):
    tensors, cases = densities
    for name, case in cases.items():
        scheme = case["scheme"]
        options = {"density": DRAWN.get(scheme, "uniform")}
        if scheme == "logit_normal":
            options |= {"location": case["logit_mean"], "scale": case["logit_std"]}
        if scheme == "mode":
            options |= {"scale": case["mode_scale"]}
        found = sample_sigmas(64, seeded(case["seed"]), schedule_shift=shift, preset="diffusers", **options)
        assert torch.allclose(found, tensors[f"{name}/shift{shift}/sigma"], atol=1e-7), name
        weight = scheme if scheme in ("sigma_sqrt", "cosmap") else "none"
        weights = loss_weights(found, weight)
        expected = tensors[f"{name}/shift{shift}/weight"]
        assert torch.allclose(torch.ones(64) if weights is None else weights, expected, rtol=1e-6), name


def test_a_positive_location_is_more_noise_here_and_less_in_diffusers(densities):
    _, cases = densities
    means = cases["logit_0.5_1"]["mean_sigma"]
    drawn = {
        preset: float(sample_sigmas(100_000, seeded(), location=0.5, preset=preset).mean())
        for preset in ("paper", "diffusers")
    }
    assert drawn["paper"] == pytest.approx(means["kohya"], abs=0.03)
    assert drawn["diffusers"] == pytest.approx(means["diffusers shift 1"], abs=0.03)
    assert drawn["paper"] + drawn["diffusers"] == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize(
    ("stored", "options"),
    [
        ("logit_normal_0_1", {}),
        ("logit_normal_0.5_1", {"location": 0.5}),
        ("logit_normal_-0.6_0.7", {"location": -0.6, "scale": 0.7}),
        ("mode_1.29", {"density": "mode", "scale": 1.29}),
        ("mode_0.8", {"density": "mode", "scale": 0.8}),
        ("mode_-0.5", {"density": "mode", "scale": -0.5}),
        ("cosmap", {"density": "cosmap"}),
    ],
)
def test_densities_have_the_papers_quantiles(densities, stored, options):
    tensors, _ = densities
    drawn = sample_sigmas(200_000, seeded(3), **options).double().sort().values
    found = drawn[(tensors["law/p"] * len(drawn)).long()]
    error = (tensors["law/p"] * (1 - tensors["law/p"]) / len(drawn)).sqrt() / tensors[f"law/{stored}/pdf"]
    assert ((found - tensors[f"law/{stored}/quantile"]).abs() < 4.5 * error).all()


def test_weights_are_those_of_the_peers_on_the_velocity(densities):
    tensors, _ = densities
    sigma = tensors["weights/sigma"]
    for weight in ("sigma_sqrt", "cosmap"):
        for precondition in (False, True):
            name = f"weights/effective_on_velocity/{weight}/precondition_{'on' if precondition else 'off'}"
            found = loss_weights(sigma, weight, precondition=precondition)
            assert torch.allclose(found, tensors[name], rtol=2e-6), name
    found = loss_weights(sigma, precondition=True)
    assert torch.allclose(found, tensors["weights/effective_on_velocity/none/precondition_on"], rtol=1e-6)
    exact = loss_weights(sigma.double(), "min_snr")
    assert torch.allclose(exact, tensors["weights/min_snr_5/on_velocity"], rtol=1e-6, atol=1e-12)


def test_min_snr_is_one_loss_on_data_noise_and_velocity(densities):
    tensors, _ = densities
    sigma, path = tensors["weights/sigma"][1:-1].double(), PATHS["rectified"]
    weights = loss_weights(sigma, "min_snr")
    scales = path.scales(sigma)
    of_data, of_noise = (weights / scale.square() for scale in (scales.noise, scales.data))
    assert torch.allclose(of_data, tensors["weights/min_snr_5/on_denoised"][1:-1], rtol=1e-6)
    assert torch.allclose(of_noise, tensors["weights/min_snr_5/on_noise"][1:-1], rtol=1e-6)


@pytest.mark.parametrize("name", ["ot", "vp_linear_beta", "vp_cosine", "ve"])
@pytest.mark.parametrize("weight", ["none", "sigma_sqrt", "cosmap", "min_snr"])
def test_losses_of_an_exact_model_equal_the_stored_velocities(shared_reference, name, weight):
    """In float64, term by term: the model is the exact one of a mixture, the targets are the stored ones."""
    paths = load_file(shared_reference / "training" / "paths.safetensors")
    path = {"ot": "rectified", "vp_linear_beta": "vp_linear"}.get(name, name)
    sigma, data, noise = paths["in/level"][1:8], paths["in/data"], paths["in/noise"]
    answers = paths[f"{name}/gauss_velocity"][1:8, :3]
    squares = (answers - paths[f"{name}/velocity"][1:8]).square()
    weights = loss_weights(sigma, weight, path=path)
    weights = torch.ones_like(sigma) if weights is None else weights
    for row, level in enumerate(sigma):
        found = cfm_loss(
            lambda x, s, row=row: answers[row], data, path=path, noise=noise, sigma=level, weight=weight
        )
        expected = (weights[row] * squares[row]).mean()
        assert torch.allclose(found, expected, rtol=1e-12), (name, float(level))


def test_precondition_compares_data_in_place_of_velocities():
    data, noise, sigma = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0.2, 0.5, 0.9])
    x = PATHS["rectified"].interpolate(data, noise, sigma)
    loss = cfm_loss(lambda x, s: 0.3 * x, data, noise=noise, sigma=sigma, precondition=True)
    assert loss == pytest.approx(float((x - sigma[:, None] * 0.3 * x - data).square().mean()), rel=1e-5)
    root = cfm_loss(
        lambda x, s: 0.3 * x, data, noise=noise, sigma=sigma, weight="sigma_sqrt", precondition=True
    )
    assert root == pytest.approx(float(cfm_loss(lambda x, s: 0.3 * x, data, noise=noise, sigma=sigma)))


@pytest.mark.parametrize("path", ["rectified", "vp_cosine"])
def test_gradients_of_flow_matching_and_conditional_flow_matching_agree(path):
    """On a grid of states, where the mean over data given x is a finite sum, to rounding (theorem 2)."""
    points, level = torch.tensor([-1.5, 0.4, 1.1], dtype=torch.float64), 0.4
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    a, n, a_rate, n_rate = PATHS[path].scales(torch.tensor(level, dtype=torch.float64))
    noise = (grid - a * points[:, None]) / n  # of each pair of a point and a state
    density = torch.exp(-noise.square() / 2)  # of x given the point
    conditional = a_rate * points[:, None] + n_rate * noise
    weight = torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64, requires_grad=True)
    learned = weight[0] + weight[1] * grid + weight[2] * torch.sin(grid)
    marginal = (density * conditional).sum(0) / density.sum(0)
    of_marginal = (density.sum(0) * (learned - marginal).square()).sum()
    of_conditional = (density * (learned - conditional).square()).sum()
    first, second = (
        torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (of_marginal, of_conditional)
    )
    assert of_conditional > of_marginal * 1.5
    assert torch.allclose(first, second, rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: loss_weights(torch.tensor([0.5]), "snr"), "none, sigma_sqrt"),
        (lambda: loss_weights(torch.tensor([0.5, 0.0]), "sigma_sqrt"), "no value at sigma 0"),
        (lambda: loss_weights(torch.tensor([0.5]), "min_snr", precondition=True), "already"),
        (lambda: sample_sigmas(2, seeded(), density="cosmap", preset="diffusers"), "weight='cosmap'"),
        (lambda: sample_sigmas(2, seeded(), preset="kohya"), "paper or diffusers"),
        (lambda: cfm_loss(lambda x, s: x, torch.ones(2, 3), generator=seeded(), path="ddpm"), "vp_linear"),
        (lambda: cfm_loss(lambda x, s: x, torch.ones(2, 3), generator=seeded(), sigma=500.0), "timestep"),
        (
            lambda: cfm_loss(lambda x, s: x, torch.ones(2, 3), generator=seeded(), coupling="ot"),
            "independent",
        ),
    ],
)
def test_more_bad_requests_are_named(call, message):
    with pytest.raises(FlowError, match=message):
        call()
