"""What holds tensors prints in a line or two."""

import torch

from flow import euler, integrate, inversion, inverting, log_likelihood, sigmas


def test_no_value_prints_its_tensors(gaussian, noise_for):
    x, table = noise_for(2), sigmas(4)
    solution = integrate(gaussian, x, table, "leapfrog")
    values = [
        solution,
        solution.companion,
        inversion(gaussian, solution.x, table),
        next(euler(gaussian, x, table)),
        next(inverting(gaussian, solution.x, table)),
        log_likelihood(gaussian, x, table.flip(0), solver="euler"),
    ]
    for value in values:
        shown = repr(value)
        assert "tensor(" not in shown
        assert "(2, 4, 4, 4), mean" in shown
        assert len(shown) < 3000
    assert repr(solution).startswith("Solution(x=<float32 (2, 4, 4, 4), mean ")
    assert "log_prob" not in repr(solution)


def test_odd_tensors_print_too():
    from flow.show import brief

    assert brief(torch.ones(3, dtype=torch.int8)) == "<int8 (3,)>"
    assert brief(torch.ones(1)) == "1"
    assert brief({"w": torch.ones(0, 2)}) == "{w: <float32 (0, 2)>}"
