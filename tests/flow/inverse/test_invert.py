"""The way back: exact returns, the published approximations do not, and the report says which is which."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from flow import (
    METHODS,
    SOLVERS,
    FlowError,
    Inversion,
    closeness,
    integrate,
    inversion,
    invert,
    inverting,
    sigmas,
    solve,
)

TABLE = sigmas(28)


@pytest.fixture(scope="module")
def generation(toy, noise_for):
    noise = noise_for(6)
    return noise, solve(toy(), noise, TABLE)


def psnr(found, noise):
    return closeness(found, noise).total_psnr


@pytest.mark.parametrize(
    ("accuracy", "cost", "gain"), [(1e-1, 1.5, 12), (1e-2, 2.0, 25), (1e-4, 3.5, 60), (1e-5, 5, 70)]
)
def test_exact_gains_what_it_costs(accuracy, cost, gain, toy, generation, counted):
    noise, data = generation
    velocity = counted(toy())
    found = inversion(velocity, data, TABLE, accuracy=accuracy, check=False)
    assert found.report.evaluations == velocity.calls <= cost * 28
    assert found.decibels == ()
    assert psnr(found.noise, noise) > psnr(invert(toy(), data, TABLE, "naive"), noise) + gain
    assert found.report.converged is True
    assert found.report.problems == ()
    assert min(velocity.sigmas) > 0


def test_exact_returns_to_float64_rounding(toy, noise_for):
    noise, table = noise_for(2, dtype=torch.float64), TABLE.double()
    found = invert(toy(), solve(toy(), noise, table), table, accuracy=1e-12)
    assert psnr(found, noise) > 200


@pytest.mark.parametrize("solver", ["midpoint", "heun", "rk4"])
def test_exact_inverts_other_one_step_solvers(solver, toy, noise_for):
    noise, table = noise_for(2), sigmas(10)
    found = inversion(toy(1.0), solve(toy(1.0), noise, table, solver), table, solver=solver, accuracy=1e-6)
    assert psnr(found.noise, noise) > 90
    assert found.report.converged


def test_every_published_method_runs_at_its_cost_and_stays_behind_exact(toy, generation, counted):
    noise, data = generation
    exact = psnr(invert(toy(), data, TABLE, accuracy=1e-4), noise)
    cost = {"naive": 28, "rf_solver": 56, "fireflow": 29, "uni_inv": 29, "fixed_point": 112}
    assert set(cost) == set(METHODS) - {"exact"}
    for method, calls in cost.items():
        velocity = counted(toy())
        found = inversion(velocity, data, TABLE, method)
        assert found.report.evaluations == velocity.calls == calls
        assert found.report.converged is None
        assert 15 < psnr(found.noise, noise) < exact - 30


def test_no_method_has_two_names(toy, generation):
    found = {name: invert(toy(), generation[1], TABLE, name) for name in METHODS}
    for name, noise in found.items():
        assert [other for other, own in found.items() if torch.equal(own, noise)] == [name]


def test_naive_is_euler_over_the_flipped_table(toy, generation):
    _, data = generation
    assert torch.equal(invert(toy(), data, TABLE, "naive"), solve(toy(), data, TABLE.flip(0)))
    assert torch.equal(
        invert(toy(), data, TABLE, "naive", solver="heun"), solve(toy(), data, TABLE.flip(0), "heun")
    )


def test_fixed_point_converges_where_the_flow_is_gentle_and_average_is_another_method(toy, noise_for):
    noise, table = noise_for(2), sigmas(28)
    data = solve(toy(1.0), noise, table)
    errors = [psnr(invert(toy(1.0), data, table, "fixed_point", iterations=n), noise) for n in (1, 4, 12)]
    assert errors[0] < errors[1] < errors[2]
    averaged = invert(toy(1.0), data, table, "fixed_point", average=True)
    assert not torch.equal(averaged, invert(toy(1.0), data, table, "fixed_point"))
    assert psnr(averaged, noise) > errors[0]


def test_capped_steps_are_reported_with_how_far_they_came(toy, generation):
    _, data = generation
    report = inversion(toy(), data, TABLE, accuracy=1e-6, max_evaluations=2).report
    assert report.converged is False
    failed = [step for step in report.steps if not all(step.converged)]
    assert failed
    assert all(step.evaluations <= 2 for step in report.steps)
    assert "stopped at a residual of" in report.problems[0]
    assert f"step {failed[0].number} " in report.problems[0]


@pytest.mark.parametrize(("solver", "cost"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_the_cap_counts_evaluations_of_the_velocity(solver, cost, toy, noise_for):
    table, cap = sigmas(8), 9
    data = solve(toy(), noise_for(2), table, solver)
    report = inversion(toy(), data, table, solver=solver, accuracy=1e-6, max_evaluations=cap).report
    assert report.converged is False
    assert cap - cost < max(step.evaluations for step in report.steps) <= cap


def test_a_bfloat16_network_stops_at_its_noise_and_says_so(toy, noise_for):
    velocity, noise = toy(dtype=torch.bfloat16), noise_for(2)
    found = inversion(velocity, solve(velocity, noise, TABLE), TABLE, accuracy=1e-6)
    assert found.report.converged is False
    assert found.report.evaluations < 28 * 30  # given up, not run to the cap


def test_samples_lost_to_a_folding_step_are_named(toy, noise_for):
    noise, folding = noise_for(16, dtype=torch.float64).float(), toy(7.0, spread=0.03)
    data = solve(folding, noise, TABLE)
    found = inversion(folding, data, TABLE, accuracy=1e-5)
    lost = [sample for sample, db in enumerate(closeness(found.noise, noise).psnr.tolist()) if db < 70]
    assert lost  # converged, on another preimage
    assert found.report.converged
    assert set(lost) <= set(found.report.ambiguous)
    assert len(found.report.ambiguous) <= 4
    assert any("only a reversible solver" in line for line in found.report.problems)


def test_no_fold_is_suspected_of_a_field_without_curvature(gaussian, noise_for):
    noise = noise_for(16)
    found = inversion(gaussian, solve(gaussian, noise, TABLE), TABLE, accuracy=1e-5)
    assert found.report.ambiguous == ()
    assert found.report.problems == ()


def test_stretch_is_that_of_a_linear_field():
    values = torch.tensor([0.9, 0.5, -3.0, 12.0])  # of v's Jacobian; a step of -0.1 stretches by 1 - 0.1 each

    def velocity(x, sigma):
        return x * values

    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    table = torch.tensor([0.5, 0.4])
    found = inversion(velocity, solve(velocity, x, table), table, accuracy=1e-6)
    (step,) = found.report.steps
    assert step.stretch == pytest.approx([-0.2] * 3, abs=1e-3)  # 1 - 0.1 * 12
    assert found.report.ambiguous == (0, 1, 2)
    assert torch.allclose(found.noise, x, atol=1e-5)  # it folds no further than a reflection, and is inverted


def test_report_is_json_and_complete(toy, generation):
    _, data = generation
    found = inversion(toy(), data, TABLE, accuracy=1e-2)
    assert isinstance(found, Inversion)
    report = json.loads(json.dumps(found.report.to_dict()))
    assert report["evaluations"] == found.report.evaluations
    assert [step["number"] for step in report["steps"]] == list(reversed(range(28)))
    assert [step.sigma for step in found.report.steps] == TABLE[:-1].flip(0).tolist()


def test_steps_are_seen_as_they_are_taken(toy, generation):
    _, data = generation
    steps = inverting(toy(), data, TABLE, accuracy=1e-2)
    first = next(steps)
    assert first.report.number == 27
    assert first.x.shape == data.shape
    assert len(list(steps)) == 27


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"method": "null_text"}, "exact, naive"),
        ({"solver": "ddim"}, "no solver"),
        ({"solver": "ab2"}, "cannot be undone from its last state"),
        ({"solver": "bdia"}, "needs the companion"),
        ({"accuracy": 1e-9}, "the rounding of torch.float32"),
        ({"accuracy": 0}, "accuracy must be at least"),
        ({"accuracy": float("nan")}, "'accuracy' of method 'exact' must be a finite number, got nan"),
        ({"accuracy": "high"}, "'accuracy' of method 'exact' must be a finite number, got 'high'"),
        ({"max_evaluations": 100.0}, "'max_evaluations' of method 'exact' must be a whole number, got 100.0"),
        ({"method": "fixed_point", "average": 1}, "'average' .* must be true or false, got 1"),
        ({"method": "naive", "solver": "dopri5", "rtol": float("inf")}, "'rtol' .* must be a finite number"),
        ({"max_evaluations": 0}, "at least 1"),
        ({"max_evaluations": np.int64(0)}, "at least 1"),
        ({"method": "fixed_point", "iterations": 0}, "at least 1"),
        ({"method": "fixed_point", "iterations": 1, "average": True}, "at least 2"),
        ({"sigmas": TABLE.flip(0)}, "falling"),
        ({"solver": "rk4", "max_evaluations": 3}, "at least 4, one step of rk4"),
        (
            {"iterations": 4},
            "'exact' takes no option 'iterations'; it takes accuracy, max_evaluations",
        ),
        (
            {"method": "naive", "accuracy": 1e-3},
            "'naive' with solver 'euler' takes no option 'accuracy'; it .* none",
        ),
        ({"method": "naive", "solver": "dopri5", "accuracy": 1e-3}, "it takes rtol, atol, max_evaluations"),
        ({"method": "rf_solver", "accuracy": 1e-3}, "'rf_solver' takes no option 'accuracy'; it takes none"),
        ({"method": "uni_inv", "accuracy": 1e-3}, "'uni_inv' takes no option 'accuracy'; it takes none"),
        ({"method": "fixed_point", "accuracy": 1e-3}, "'accuracy'; it takes iterations, average"),
        ({"solver": "sde"}, "adds noise of which the data keep no trace"),
        ({"solver": "sde", "method": "naive", "generator": torch.Generator()}, "'sde' cannot be inverted"),
        ({"solver": "sde", "method": "uni_inv"}, "'sde' cannot be inverted"),
    ],
)
def test_bad_requests_are_refused(toy, generation, call, message):
    with pytest.raises(FlowError, match=message):
        inverting(toy(), generation[1], **({"sigmas": TABLE} | call))


def test_a_companion_for_a_solver_without_is_refused(toy, noise_for):
    there = integrate(toy(), noise_for(2), sigmas(4), "bdia")
    with pytest.raises(FlowError, match="'euler' has no companion"):
        invert(toy(), there.x, sigmas(4), companion=there.companion)


def test_nan_on_the_way_names_step_and_sigma(toy, generation):
    def broken(x, sigma):
        return torch.where(sigma.reshape(-1, 1, 1, 1) > 0.5, torch.nan, toy()(x, sigma))

    first = int((TABLE > 0.5).nonzero().max())  # of the way back
    for method in METHODS:
        # The last level that is broken is where step `first` of the generation began, and so where the first
        # bad step of those methods that solve for the beginning arrives. The others leave from there.
        number = first if method in ("exact", "uni_inv", "fixed_point") else first - 1
        with pytest.raises(FlowError, match=r"not finite at step \d+, sigma 0\.5") as caught:
            invert(broken, generation[1], TABLE, method)
        assert f"at step {number}," in str(caught.value), method


@pytest.mark.parametrize("hard", [lambda x: 40 * x**2, lambda x: 1e3 * x**3, lambda x: torch.exp(9 * x)])
@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("end", [2.0, 4.0, 8.0])
def test_a_sample_without_a_beginning_is_given_up_and_spoils_no_other(hard, solver, end):
    def velocity(x, sigma):
        return torch.cat([torch.sin(x[:1]), hard(x[1:])])

    table = sigmas(6)
    noise = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    data = solve(lambda x, sigma: torch.sin(x), noise, table, solver)
    found = inversion(velocity, torch.cat([data, torch.full((1, 8), end)]), table, solver=solver)
    assert closeness(found.noise[:1], noise, 8.0).total_psnr > 80
    assert found.noise.isfinite().all()
    assert found.report.problems
    assert all("sample 1" in problem for problem in found.report.problems)


def test_only_exact_looks_at_a_companion(toy, noise_for):
    there = integrate(toy(), noise_for(2), sigmas(4), "bdia")
    given = {"solver": "bdia", "companion": there.companion}
    assert inversion(toy(), there.x, sigmas(4), **given).report.method == "undo"
    naive = inversion(toy(), there.x, sigmas(4), "naive", **given)
    assert naive.report.method == "naive"
    assert torch.equal(naive.noise, invert(toy(), there.x, sigmas(4), "naive", "bdia"))
    with pytest.raises(FlowError, match="no method 'nonsense'"):
        invert(toy(), there.x, sigmas(4), "nonsense", **given)


@pytest.mark.parametrize(
    "solver", [name for name, one in SOLVERS.items() if one.reversible and name != "rex"]
)
def test_a_way_up_is_undone_too(solver, toy, generation):
    data, upward = generation[1], TABLE.flip(0)
    there = integrate(toy(), data, upward, solver)
    back = invert(toy(), there.x, upward, solver=solver, companion=there.companion)
    assert psnr(back, data) > 90
    with pytest.raises(FlowError, match="falling"):
        invert(toy(), there.x, upward, "naive", solver, companion=there.companion)


def test_a_damaged_companion_is_told_from_a_bad_velocity(toy, noise_for):
    there = integrate(toy(), noise_for(2), sigmas(4), "bdia")
    spoilt = {name: tensor * torch.nan for name, tensor in there.companion.tensors.items()}
    with pytest.raises(FlowError, match="the companion is damaged"):
        invert(toy(), there.x, sigmas(4), solver="bdia", companion=replace(there.companion, tensors=spoilt))


def erring(x, sigma):
    """Denoised to 0 but for an error, its derivative 0.2 at most: what a network leaves across the data."""
    level = sigma.reshape(-1, 1).to(x)
    return (x + 0.2 * torch.sin(30 * x) / 30) / level


@pytest.mark.parametrize("steps", [14, 28])
def test_a_table_without_a_steep_step_is_invertible_where_the_reference_folds(steps):
    noise = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    found, reports = {}, {}
    for preset in ("reference", "tailed"):
        table = sigmas(steps, preset=preset)[:-1]  # this field leaves nothing at 0
        inverse = inversion(erring, solve(erring, noise, table), table, accuracy=1e-4)
        found[preset], reports[preset] = psnr(inverse.noise, noise), inverse.report
    assert found["reference"] < 30
    assert found["tailed"] > 100
    assert reports["reference"].ambiguous == tuple(range(8))
    advice = [line for line in reports["reference"].problems if "preset='tailed'" in line]
    assert len(advice) == 8
    assert f"Step {steps - 2} shrinks sigma to 0.0" in advice[0]
    assert not any("preset='tailed'" in line for line in reports["tailed"].problems)
