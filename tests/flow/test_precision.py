"""States are float32 or better, and a device without float64, as Apple's, is never asked for it."""

import pytest
import torch
from torch import Tensor

from flow import SOLVERS, closeness, integrate, inversion, on_grid, sigmas, solve
from flow.precision import as_float64, off_mps, wide

TABLE = sigmas(8)


class OnApple(Tensor):
    """A tensor that behaves as on Apple's device: without float64, and apart from those on the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func == Tensor.device.__get__:
            return torch.device("mps")
        if func is Tensor.cpu:
            return plain(args[0])
        if func is Tensor.to and isinstance(args[1], Tensor):
            here, there = (isinstance(tensor, cls) for tensor in args)
            refuse_float64(here and args[1].dtype == torch.float64)  # the device would have to convert it
            moved = plain(args[0]).to(plain(args[1]))
            return moved.as_subclass(cls) if there else moved
        elsewhere = [one for one in args if isinstance(one, Tensor) and not isinstance(one, cls)]
        if any(tensor.ndim > 0 for tensor in elsewhere):
            raise RuntimeError(f"{func.__name__}: expected all tensors to be on the same device")
        result = super().__torch_function__(func, types, args, kwargs)
        refuse_float64(isinstance(result, cls) and result.dtype == torch.float64)
        return result


def plain(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def refuse_float64(asked: bool) -> None:
    if asked:
        raise TypeError("the MPS framework doesn't support float64")


@pytest.fixture
def on_both(noise_for):
    """The same noise on the CPU and on what stands for Apple's device."""
    return noise_for(2), noise_for(2).as_subclass(OnApple)


def test_the_stand_in_has_no_float64(on_both):
    here, there = on_both
    for ask in (Tensor.double, lambda x: x.to(torch.float64), lambda x: x.to(here.double())):
        with pytest.raises(TypeError, match="float64"):
            ask(there)
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    assert there.device.type == "mps"


def test_float64_is_found_on_the_cpu_where_the_device_has_none(on_both):
    here, there = on_both
    assert as_float64(there).dtype == torch.float64
    assert torch.equal(as_float64(there), here.double())
    assert off_mps(here) is here
    assert wide(there.bfloat16()).dtype == torch.float32


def test_closeness_is_measured_on_the_cpu(on_both):
    here, there = on_both
    assert closeness(there + 1, there).total_psnr == closeness(here + 1, here).total_psnr


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_the_exact_inverse_is_as_exact_as_on_the_cpu(solver, toy, on_both):
    def velocity(x, sigma):
        return toy(1.0)(x, sigma)

    velocity.part = lambda samples: velocity  # of any samples: row numbers cannot be sent to the stand-in
    noise, there = on_both
    found = inversion(velocity, solve(velocity, there, TABLE, solver), TABLE, solver=solver, accuracy=1e-6)
    assert isinstance(found.noise, OnApple)
    assert found.report.problems == ()
    assert closeness(plain(found.noise), noise).total_psnr > 100


@pytest.mark.parametrize("solver", [name for name, solver in SOLVERS.items() if solver.reversible])
def test_undoing_is_that_of_the_cpu(solver, toy, on_both):
    found = []
    for noise in on_both:
        there = integrate(toy(), noise, TABLE, solver)
        found.append(inversion(toy(), there.x, TABLE, solver=solver, companion=there.companion).noise)
    assert isinstance(found[1], OnApple)
    assert torch.equal(plain(found[1]), found[0])


def test_the_grid_is_that_of_the_cpu(on_both):
    here, there = on_both
    assert torch.equal(plain(on_grid(there)), on_grid(here))
