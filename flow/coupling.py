"""Which noise goes with which data: couplings of a batch.

Tong et al. 2023 (arXiv:2302.00482), Pooladian et al. 2023 (arXiv:2304.14772): pairs that lie near each other
cross less, so that the flow that is learned from them is straighter.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import FlowError
from .precision import as_float64

Coupling = Literal["independent", "optimal_transport"]


def couple(data: Tensor, noise: Tensor, coupling: Coupling = "independent") -> Tensor:
    """Reorder the noise of a batch so that each row goes with the data of the same row.

        independent          as drawn
        optimal_transport    the permutation with the least Σ ‖noise - data‖²

    The second is exact within the batch, and of the order of B³: a few milliseconds at 256, a second at 4096.
    It only tells apart where B is not small for the number of dimensions.

    Args:
        data: (B, *S).
        noise: (B, *S), noise or samples of whatever else the flow begins at.
        coupling: one of the above.

    Returns:
        The rows of `noise`, each once, (B, *S).

    Raises:
        FlowError: an unknown coupling, shapes that differ, or scipy is missing.
    """
    if coupling not in get_args(Coupling):
        raise FlowError(f"coupling must be one of {', '.join(get_args(Coupling))}; got {coupling!r}")
    if data.shape != noise.shape:
        raise FlowError(f"noise must be shaped as data, {tuple(data.shape)}, got {tuple(noise.shape)}")
    if coupling == "independent":
        return noise
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise FlowError(
            "coupling 'optimal_transport' needs scipy: pip install scipy, or this project with [ot]"
        ) from error
    flat, other = (as_float64(each.detach()).flatten(1).cpu() for each in (data, noise))
    cost = torch.cdist(flat, other, compute_mode="donot_use_mm_for_euclid_dist").square()
    _, chosen = linear_sum_assignment(cost.numpy())
    return noise[torch.as_tensor(chosen, device=noise.device)]
