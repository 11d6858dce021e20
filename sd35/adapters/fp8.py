"""Products of the transformer's blocks in 8-bit floats, for cards that have them."""

from typing import cast

import torch
from torch import nn

from mmdit import MMDiT
from weights.packed.linear import PackedLinear
from weights.packed.product import Fp8Linear, as_fp8

from ..errors import SettingsError
from .swap import Swap

CAPABILITY = (8, 9)
"""Of NVIDIA's cards, the first that multiply 8-bit floats: Ada, and then Hopper and Blackwell."""


def use_fp8(mmdit: MMDiT) -> None:
    """Take the products of every layer that all tokens pass through in 8-bit floats, for good.

    The layers that give modulation vectors see one row only, and stay as they are, as what is no block does.
    """
    for path in fp8_paths(mmdit):
        Swap(mmdit, {path: as_fp8})  # one after the other, so that two copies of all are never there


def fp8_paths(mmdit: MMDiT) -> list[str]:
    """The linear layers of the blocks, by path, but for those of the modulation."""
    return [
        path
        for path, layer in mmdit.named_modules()
        if isinstance(layer, nn.Linear | PackedLinear)
        and path.startswith("joint_blocks.")
        and "adaLN_modulation" not in path
    ]


def is_fp8(mmdit: nn.Module) -> bool:
    """Whether `use_fp8` was here."""
    return any(isinstance(module, Fp8Linear) for module in mmdit.modules())


def check_fp8(device: torch.device, dtype: torch.dtype, *, unpack: bool = False) -> None:
    """See that a device multiplies 8-bit floats, before anything is loaded.

    Args:
        device: where the transformer runs.
        dtype: what it computes in.
        unpack: whether weights are to be unpacked.

    Raises:
        SettingsError: it does not; or something else that is asked for is the opposite.
    """
    if unpack:
        raise SettingsError("fp8 keeps weights in 8 bits, and unpack does not: leave one of them out")
    if dtype.itemsize > 2 and device.type != "cpu":
        raise SettingsError("fp8 has no effect in float32: ask for bfloat16 or float16, or leave it out")
    if device.type == "cuda":
        capability = cast(tuple[int, int], torch.cuda.get_device_capability(device))
        if capability >= CAPABILITY:
            return
        what = f"{torch.cuda.get_device_name(device)}, of compute capability {capability[0]}.{capability[1]}"
    else:
        what = f"a {device.type} device"
    needed = ".".join(map(str, CAPABILITY))
    raise SettingsError(
        f"fp8 needs an NVIDIA GPU of compute capability {needed} or more (Ada, Hopper, Blackwell), and this "
        f"is {what}: leave it out"
    )
