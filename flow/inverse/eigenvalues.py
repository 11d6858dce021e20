"""How a step of Euler's method stretches and folds: eigenvalues of its derivative, by Arnoldi's method.

Saad, Numerical Methods for Large Eigenvalue Problems, section 6.2. `schedule.tailed` has what they are on and
off the data. A negative real one means that the step turns that direction over; where its sign changes, it
folds.
"""

import torch
from torch import Tensor

from ..errors import FlowError
from ..precision import as_float64
from ..solvers.base import Velocity, evaluate, prepare

EXHAUSTED = 1e-3
"""What is left of an image beside the directions before it, below which that is rounding."""
REACH = 1e-2
"""Length of a difference, relative to the root mean square of x: far above a float32 velocity's rounding."""


def step_eigenvalues(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator,
    count: int = 16,
) -> Tensor:
    """Ritz values of the derivative of one Euler step, the outermost of its eigenvalues nearly.

    Args:
        velocity: of the generation.
        x: where the step begins, (1, *S): one sample.
        sigmas: its two levels, (2,).
        generator: draws the first direction.
        count: directions, each two evaluations; the extreme eigenvalues come first, in about a dozen.

    Returns:
        (count,) complex, by rising real part; fewer where the directions are exhausted.

    Raises:
        FlowError: more than one sample, more or less than one step, and as in `euler`.
    """
    x, table = prepare(x, sigmas)
    if len(x) != 1 or len(table) != 2:
        raise FlowError(f"one sample and one step, got {len(x)} and {len(table) - 1}")
    h = as_float64(table[1] - table[0])
    reach = REACH * as_float64(x).square().mean().sqrt()

    def pushed(direction: Tensor) -> Tensor:
        """The derivative times a direction of length 1, (D,)."""
        move = reach * direction.numel() ** 0.5 * direction.reshape(x.shape)
        ends = [evaluate(velocity, (as_float64(x) + sign * move).to(x), table[0], 0) for sign in (1, -1)]
        slope = as_float64(ends[0] - ends[1]).flatten() / (2 * reach * direction.numel() ** 0.5)
        return direction + h * slope

    start = torch.randn(x[0].numel(), generator=generator, dtype=torch.float64, device=generator.device).to(h)
    basis, columns = [start / start.norm()], []
    for _ in range(min(count, len(start))):
        image, column = pushed(basis[-1]), []
        for q in basis:
            column.append(q @ image)
            image = image - column[-1] * q
        columns.append(torch.stack([*column, image.norm()]))
        if image.norm() < EXHAUSTED:
            break
        basis.append(image / image.norm())
    hessenberg = torch.zeros(len(columns), len(columns), dtype=h.dtype, device=h.device)
    for index, column in enumerate(columns):
        rows = min(len(column), len(columns))
        hessenberg[:rows, index] = column[:rows]
    values = torch.linalg.eigvals(hessenberg)
    return values[values.real.argsort()]
