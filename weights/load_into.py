"""Give a module the tensors of a component: all of them, checked as a whole first, and no others."""

import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .compare import require_fit
from .component import Component
from .file import MappedFile
from .packed.linear import PackedLinear
from .packed.value import Packed
from .values import check_cast, check_finite, check_packed

Device = torch.device | str


class Uninitialised(TorchFunctionMode):
    """Skips torch.nn.init: there is nothing to set on the meta device.

    Besides, the first `normal_` there, of an nn.Embedding, makes torch import its symbolic
    mathematics, which takes longer than everything else that loading does.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call what torch was about to call, unless it sets initial values."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def load_into(
    module: nn.Module,
    component: Component,
    device: Device,
    dtype: torch.dtype | None,
    *,
    unpack: bool = False,
) -> None:
    """Load a component into a module, which is put in eval mode with parameters that want no gradient.

    The fit and the values are checked before anything changes: a module is loaded or left alone.
    Built under `torch.device("meta")`, it has cost no memory until here, and it takes the mapped
    tensors over without a copy where device and dtype already match.

    Args:
        module: built for the component's shapes.
        component: the tensors.
        device: where the weights go.
        dtype: cast to this; None is `component.dtype`. Integers stay what they are.
        unpack: give the linear layers that are stored in few bits their numbers now, not at each use.

    Raises:
        FitError: a tensor is missing, left over, or of a shape or dtype that does not fit.
        ValuesError: weights are NaN or infinite, or become so in `dtype`.
    """
    require_fit(component, module)
    target = dtype or component.dtype
    packed = component.packed(linear_weights(module))
    check_packed(packed, target, name=component.where)
    stored = component.tensors(tuple(name for name in module.state_dict() if name not in packed))
    check_finite(stored, name=component.where)
    ready = {
        name: tensor.to(device, target if tensor.is_floating_point() else None)
        for name, tensor in stored.items()
    }
    narrowed = {
        name: tensor for name, tensor in ready.items() if _may_overflow(stored[name].dtype, tensor.dtype)
    }
    if unpack:  # one after the other: in float32 all of them would take four times their bytes
        narrowed |= {name: weight.unpack(target).to(device) for name, weight in packed.items()}
        ready |= {name: narrowed[name] for name in packed}
    check_cast(narrowed, target, name=component.where)
    distance = projection_distance(component)
    if distance:
        warnings.warn(
            f"{component.where}: text_projection is not the identity (it differs by {distance:.3g}) and is "
            "not used: SD3 does not project CLIP-L. diffusers would apply it, so its pooled vectors differ",
            stacklevel=4,
        )
    for name, weight in ({} if unpack else packed).items():
        ready |= _put_packed(module, name.removesuffix(".weight"), weight, device)
    module.load_state_dict(ready, assign=True)
    module.eval().requires_grad_(False)


def linear_weights(module: nn.Module) -> tuple[str, ...]:
    """The weights of the linear layers in a module's stacks, by key: nearly all of its bytes."""
    return tuple(
        f"{path}.weight"
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and re.search(r"\.\d+\.", path)
    )


def _put_packed(module: nn.Module, path: str, weight: Packed, device: Device) -> dict[str, Tensor]:
    """Put a layer that keeps its weight in few bits in a linear layer's place; its buffers, by key."""
    has_bias = getattr(module.get_submodule(path), "bias", None) is not None
    layer = PackedLinear(weight, bias=has_bias)
    module.set_submodule(path, layer)
    return {f"{path}.{name}": buffer.to(device) for name, buffer in layer.named_buffers()}


def projection_distance(component: Component) -> float | None:
    """How far the CLIP-L projection that a file holds is from the identity: the largest |W - I|.

    Returns:
        None where there is no such tensor, as in the official file. Both reference implementations
        agree only where it is 0, since one applies it and the other does not.
    """
    name = f"{component.prefix}text_projection.weight"
    if component.part != "clip_l" or name not in component.unit.infos:
        return None
    file = component.unit.folder.path(component.unit.files[name])
    weight: Tensor = MappedFile(file)[component.unit.stored[name]].float()
    return float((weight - torch.eye(*weight.shape, dtype=weight.dtype, device=weight.device)).abs().max())


def _may_overflow(stored: torch.dtype, ready: torch.dtype) -> bool:
    """Whether a cast can make a finite number infinite."""
    return ready.is_floating_point and torch.finfo(ready).max < torch.finfo(stored).max
