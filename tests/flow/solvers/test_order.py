"""Every solver follows flows with closed-form solutions, at its stated order and cost."""

import math

import pytest
import torch

from flow import SOLVERS, FlowError, closeness, euler, integrate, sigmas, solve
from flow.solvers.adaptive import stages

DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.stochastic]
FIXED_STEP = [name for name in DETERMINISTIC if name != "dopri5"]
CLIMBING = [name for name in SOLVERS if name != "rex"]  # which refuses a way up
FINEST_GRID = {"bitexact": {"bits": 40}}  # so that the order shows, not the grid


def riccati(x, sigma):
    """dx/dσ = -2 σ x²: x = 1 / (1/x₀ + σ² - σ₀²), nonlinear and not autonomous."""
    return -2 * sigma[:, None] * x**2


def riccati_exact(x, start, end):
    return 1 / (1 / x + end**2 - start**2)


def slope(errors):
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


@pytest.mark.parametrize("name", FIXED_STEP)
@pytest.mark.parametrize(("start", "end"), [(0.9, 0.1), (0.1, 0.9)])
def test_order_of_convergence_on_a_nonlinear_field(name, start, end):
    if start < end and name not in CLIMBING:
        pytest.skip("no way up")
    x = torch.tensor([[0.5, 0.8], [1.0, 1.1]], dtype=torch.float64)
    errors = []
    for steps in (32, 64, 128):
        table = torch.linspace(start, end, steps + 1, dtype=torch.float64)
        found = solve(riccati, x, table, name, **FINEST_GRID.get(name, {}))
        errors.append(float((found - riccati_exact(x, start, end)).abs().max()))
    assert slope(errors) > SOLVERS[name].order - 0.25


@pytest.mark.parametrize(("start", "end"), [(0.9, 0.1), (0.1, 0.9)])
def test_dopri5_is_of_fifth_order_in_steps_of_one_length(start, end):
    start_x = torch.tensor([[0.5, 0.8], [1.0, 1.1]], dtype=torch.float64)
    errors = []
    for count in (8, 16, 32):
        x, h = start_x, (end - start) / count
        for number in range(count):
            at = start + number * h
            x, _ = stages(riccati, x, at, h, riccati(x, torch.full((2,), at, dtype=x.dtype)), number)
        errors.append(float((x - riccati_exact(start_x, start, end)).abs().max()))
    assert slope(errors) > SOLVERS["dopri5"].order - 0.25


# Not the two DPM solvers: their last step to 0 is Euler's, in a time that is infinite there.
@pytest.mark.parametrize("name", [name for name in FIXED_STEP if "dpmpp" not in name])
def test_order_holds_down_to_zero_on_the_gaussian_flow(name, gaussian, noise_for):
    x = noise_for(dtype=torch.float64)
    errors = []
    for steps in (128, 256):
        table = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        found = solve(gaussian, x, table, name, **FINEST_GRID.get(name, {}))
        errors.append(float((found - gaussian.exact(x, 1, 0)).square().mean().sqrt()))
    assert slope(errors) > SOLVERS[name].order - 0.25


@pytest.mark.parametrize("name", [name for name in FIXED_STEP if name in CLIMBING])
def test_order_holds_upward_from_exactly_zero(name, gaussian, noise_for):
    x = gaussian.exact(noise_for(dtype=torch.float64), 1, 0)
    errors = []
    for steps in (128, 256):
        table = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        found = solve(gaussian, x, table, name, **FINEST_GRID.get(name, {}))
        errors.append(float((found - gaussian.exact(x, 0, 1)).square().mean().sqrt()))
    assert slope(errors) > SOLVERS[name].order - 0.25


@pytest.mark.parametrize("name", CLIMBING)
def test_every_solver_climbs_the_reference_table_from_exactly_zero(name, gaussian, noise_for):
    noise, stochastic = noise_for(64), SOLVERS[name].stochastic
    generator = {"generator": torch.Generator().manual_seed(0)} if stochastic else {}
    found = solve(gaussian, gaussian.exact(noise, 1, 0), sigmas(28).flip(0), name, **generator)
    if stochastic:  # other noise, but noise
        assert found.mean() == pytest.approx(0, abs=0.1)
        assert found.std() == pytest.approx(1, abs=0.1)
    else:
        assert closeness(found, noise).total_psnr > 30


@pytest.mark.parametrize(("name", "option"), [("leapfrog", {"damping": 1.0}), ("bdia", {"gamma": 1.0})])
def test_undamped_pairs_are_of_second_order(name, option, gaussian, noise_for):
    x = noise_for(dtype=torch.float64)
    errors = []
    for steps in (64, 128, 256):
        table = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        found = solve(gaussian, x, table, name, **option)
        errors.append(float((found - gaussian.exact(x, 1, 0)).abs().max()))
    assert slope(errors) > 1.75


@pytest.mark.parametrize("name", FIXED_STEP)
def test_costs_what_the_table_says_and_never_looks_at_zero(name, gaussian, noise_for, counted):
    for steps in (8, 28):
        velocity = counted(gaussian)
        solve(velocity, noise_for(), sigmas(steps), name)
        solver = SOLVERS[name]
        saved = 1 if name == "rk4" else 0  # its last step to 0 has three stages
        assert velocity.calls == steps * solver.evaluations + solver.startup - saved
        assert min(velocity.sigmas) > 0


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_stays_in_float32_whatever_the_velocity(name, dtype, gaussian, noise_for):
    if name == "dopri5":
        table, options = torch.tensor([1.0, 0.5]), {"rtol": 0.1, "atol": 0.1}
    else:
        table, options = sigmas(4), {}
    seen = []

    def velocity(x, sigma):
        seen.append((x.dtype, sigma.dtype, sigma.shape))
        return gaussian(x, sigma).to(dtype)

    for step in SOLVERS[name].run(velocity, noise_for(2).to(dtype), table, **options):
        assert step.x.dtype == torch.float32
        assert step.velocity.dtype == torch.float32
    assert set(seen) == {(torch.float32, torch.float32, (2,))}


@pytest.mark.parametrize("name", FIXED_STEP)  # dopri5's samples share the steps that it chooses
def test_samples_of_a_batch_do_not_meet(name, gaussian, noise_for):
    x = noise_for(3)
    together = solve(gaussian, x, sigmas(6), name)
    alone = torch.cat([solve(gaussian, one[None], sigmas(6), name) for one in x])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_nan_velocity_names_step_and_sigma(name, gaussian, noise_for):
    generator = {"generator": torch.Generator().manual_seed(0)} if SOLVERS[name].stochastic else {}
    table = torch.linspace(1, 0.2, 5)

    def velocity(x, sigma):
        v = gaussian(x, sigma)
        return torch.where(sigma.reshape(-1, 1, 1, 1) < 0.5, torch.nan, v)

    with pytest.raises(FlowError, match=r"not finite at step [123], sigma 0\.[234]"):
        solve(velocity, noise_for(2), table, name, **generator)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.tensor([1.0, 0.5, 0.6, 0.0]), "entries 1 and 2 are 0.5 and 0.6"),
        (torch.tensor([1.0, 1.0, 0.0]), "entries 0 and 1"),
        (torch.tensor([1.2, 0.0]), r"\[0, 1\]"),
        (torch.tensor([1.0, float("nan"), 0.0]), r"\[0, 1\]"),
        (torch.tensor([1.0]), r"\(steps \+ 1,\)"),
        (torch.ones(2, 2), r"\(steps \+ 1,\)"),
        (torch.tensor([1, 0]), "floating"),
    ],
)
def test_bad_tables_are_refused_at_the_call(name, table, message, noise_for, gaussian):
    generator = {"generator": torch.Generator()} if SOLVERS[name].stochastic else {}
    with pytest.raises(FlowError, match=message):
        SOLVERS[name].run(gaussian, noise_for(), table, **generator)  # not a step taken


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 3), "empty"),
        (torch.tensor(1.0), r"\(B, \.\.\.\)"),
        (torch.zeros(2, 3, dtype=torch.long), "floating"),
        (torch.full((2, 3), float("inf")), "6 values"),
    ],
)
def test_bad_states_are_refused(x, message, gaussian):
    with pytest.raises(FlowError, match=message):
        euler(gaussian, x, sigmas(4))


def test_velocity_of_another_shape_is_refused(noise_for):
    with pytest.raises(FlowError, match=r"must return \(4, 4, 4, 4\), got \(1, 4, 4, 4\)"):
        solve(lambda x, sigma: x[:1], noise_for(), sigmas(4))


def test_unknown_solver_lists_the_known():
    with pytest.raises(FlowError, match="euler, midpoint"):
        solve(riccati, torch.zeros(1, 1), sigmas(2), "ddim")


def test_unknown_options_are_refused_with_those_that_there_are(gaussian, noise_for):
    with pytest.raises(FlowError, match="'euler' takes no option 'damping'; it takes none"):
        solve(gaussian, noise_for(), sigmas(2), damping=0.9)
    with pytest.raises(FlowError, match="'leapfrog' takes no option 'gamma'; it takes damping"):
        integrate(gaussian, noise_for(), sigmas(2), "leapfrog", gamma=0.9)


def test_steps_are_seen_as_they_are_taken(gaussian, noise_for):
    table, x = sigmas(5), noise_for(1)
    for number, step in enumerate(euler(gaussian, x, table)):
        assert step.number == number
        assert (step.sigma, step.sigma_next) == (table[number], table[number + 1])
        assert torch.allclose(step.denoised, x - table[number] * step.velocity, atol=1e-6)
        assert torch.equal(step.velocity, gaussian(x, table[number].expand(1)))
        x = step.x


def test_gradients_follow_the_callers_mode(gaussian, noise_for):
    x = noise_for(1).requires_grad_()
    solve(gaussian, x, sigmas(3)).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, x.grad.flatten()[0].expand_as(x.grad))  # the flow is affine
    with torch.no_grad():
        assert not solve(gaussian, x, sigmas(3)).requires_grad
