"""Short descriptions of values that hold tensors, for whoever prints them: no list of millions of numbers."""

from collections.abc import Mapping
from dataclasses import fields

from torch import Tensor


def shown(value: object) -> str:
    """`Name(field=..., ...)` of a dataclass or named tuple; tensors in a few words, Nones left out."""
    names = getattr(value, "_fields", None) or [one.name for one in fields(value)]  # pyright: ignore
    parts = [f"{name}={brief(getattr(value, name))}" for name in names if getattr(value, name) is not None]
    return f"{type(value).__name__}({', '.join(parts)})"


def brief(value: object) -> str:
    """One value: a tensor in a few words, a mapping item by item, anything else as it shows itself."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {brief(one)}" for name, one in value.items()) + "}"
    if not isinstance(value, Tensor):
        return repr(value)
    if value.numel() == 1:
        return f"{value.item():.6g}"
    kind = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if not value.is_floating_point() or not value.numel():
        return f"<{kind}>"
    wide = value.detach().double() if value.device.type != "mps" else value.detach().float()
    return f"<{kind}, mean {float(wide.mean()):.3g}, std {float(wide.std(correction=0)):.3g}>"
