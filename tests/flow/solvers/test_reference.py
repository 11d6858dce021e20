"""Trajectories equal those of both reference implementations on the Gaussian target."""

import pytest
import torch
from safetensors.torch import load_file

from flow import SOLVERS, solve

STEPS = (4, 28, 40)


@pytest.fixture(scope="module")
def goldens(shared_reference):
    return load_file(shared_reference / "parity" / "samplers_closed_form.safetensors")


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_solvers_are_stabilitys(goldens, gaussian, name, steps):
    table, x = goldens[f"in/sigmas/shift3/steps{steps}"], goldens["in/x_sigma1"]
    for dtype, limit in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
        run = f"official_fp{torch.finfo(dtype).bits}/{name}/shift3/steps{steps}"
        found = [x] + [step.x for step in SOLVERS[name].run(gaussian, x.to(dtype), table)]
        golden = goldens[f"{run}/trajectory"] if steps == 4 else goldens[f"{run}/final"]
        found = torch.cat(found) if steps == 4 else found[-1]
        assert (found - golden).abs().max() <= limit * golden.abs().max()


@pytest.mark.parametrize("steps", STEPS)
def test_euler_is_diffusers(goldens, gaussian, steps):
    golden = goldens[f"diffusers_fp32/euler/shift3/steps{steps}/final"]
    found = solve(gaussian, goldens["in/x_sigma1"], goldens[f"in/sigmas/shift3/steps{steps}"])
    assert (found - golden).abs().max() <= 2e-6 * golden.abs().max()


@pytest.mark.parametrize("steps", STEPS)
def test_flow_dpmpp_2m_is_diffusers(goldens, gaussian, steps):
    prefix = f"ref_diffusers_dpmsolverpp_flow/shift3/steps{steps}"
    found = solve(gaussian, goldens["in/x_sigma1"], goldens[f"{prefix}/sigmas"], "flow_dpmpp_2m")
    golden = goldens[f"{prefix}/final"]
    assert (found - golden).abs().max() <= 2e-6 * golden.abs().max()


def test_the_two_dpm_solvers_are_different_algorithms(goldens, gaussian):
    x, table = goldens["in/x_sigma1"].double(), goldens["in/sigmas/shift3/steps28"]
    exact = gaussian.exact(x, 1, 0)
    stability = solve(gaussian, x, table, "dpmpp_2m")
    assert (stability - exact).abs().max() == pytest.approx(0.2589, abs=1e-3)  # Euler: 0.13
    assert (stability - solve(gaussian, x, table, "flow_dpmpp_2m")).abs().max() > 0.05


def test_exact_solution_is_the_goldens(goldens, gaussian):
    x = goldens["in/x_sigma1"].double()
    assert torch.allclose(gaussian.exact(x, 1, 0), goldens["out/exact_x_at_sigma0"], atol=1e-12)
    assert torch.allclose(gaussian.exact(x, 1, 0.5), goldens["out/exact_x_at_sigma0.5"], atol=1e-12)
