"""Which noise goes with which data."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from flow import FlowError, cfm_loss, couple


@pytest.fixture(scope="module")
def goldens(shared_reference):
    return load_file(shared_reference / "training" / "ot_coupling.safetensors")


@pytest.mark.parametrize("case", ["a", "b"])
def test_the_coupling_is_the_exact_one(goldens, case):
    pytest.importorskip("scipy")
    data, noise = goldens[f"{case}/data"], goldens[f"{case}/noise"]
    coupled = couple(data, noise, "optimal_transport")
    expected = torch.empty_like(noise)
    expected[goldens[f"{case}/assignment"]] = noise  # noise i goes to data assignment[i]
    assert torch.equal(coupled, expected)
    costs = [float((data - one).square().sum()) for one in (noise, coupled)]
    mean = [cost / len(data) for cost in costs]
    assert costs == pytest.approx(goldens[f"{case}/cost_before_after"].tolist()) or mean == pytest.approx(
        goldens[f"{case}/cost_before_after"].tolist(), rel=1e-5
    )


def test_every_row_is_there_once():
    pytest.importorskip("scipy")
    data, noise = torch.randn(32, 2, 3, 3), torch.randn(32, 2, 3, 3)
    coupled = couple(data, noise, "optimal_transport")
    assert torch.equal(coupled.flatten().sort().values, noise.flatten().sort().values)
    assert couple(data, noise) is noise


def test_the_loss_takes_coupled_noise_and_is_less_for_it():
    pytest.importorskip("scipy")
    data = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    losses = [
        float(
            cfm_loss(
                lambda x, s: torch.zeros_like(x),
                data,
                generator=torch.Generator().manual_seed(1),
                coupling=coupling,
            )
        )
        for coupling in ("independent", "optimal_transport")
    ]
    assert losses[1] < 0.2 * losses[0]


def test_without_scipy_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(FlowError, match=r"pip install scipy"):
        couple(torch.ones(2, 2), torch.ones(2, 2), "optimal_transport")


def test_bad_requests_are_named():
    with pytest.raises(FlowError, match="independent, optimal_transport"):
        couple(torch.ones(2, 2), torch.ones(2, 2), "sinkhorn")
    with pytest.raises(FlowError, match="shaped as data"):
        couple(torch.ones(2, 2), torch.ones(3, 2))
