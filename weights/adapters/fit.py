"""Whether an update fits the module that it aims at: everything that is checked before one is applied."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import AdapterError
from .value import Update

Shape = tuple[int, ...]

WIDTHS: Mapping[int, str] = {1536: "SD3-medium or SD3.5-medium", 2432: "SD3.5-large", 3072: "FLUX.1"}
"""Width of the transformer to the models that have it."""

NEEDED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "lora": (("down", "up"),),
    "full": (("weight",),),
    "bias": (("bias",),),
    "loha": (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),
    "lokr": tuple(
        (*first, *second)
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    ),
}
"""Kind to the sets of tensors of which it must have one, whole."""

OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "lora": ("alpha", "up_bias", "bias", "magnitude", "dora_scale"),
    "loha": ("alpha", "bias", "magnitude", "dora_scale", "hada_t1", "hada_t2"),
    "lokr": ("alpha", "bias", "magnitude", "dora_scale", "lokr_t2"),
    "full": ("bias", "alpha"),
    "bias": ("alpha",),
}


def kind_of(roles: Sequence[str]) -> str | None:
    """Which kind of update these tensors make, whole or not; None where they make none."""
    if any(role in ("down", "up") for role in roles):
        return "lora"
    for kind, start in (("loha", "hada_"), ("lokr", "lokr_")):
        if any(role.startswith(start) for role in roles):
            return kind
    return "full" if "weight" in roles else "bias" if "bias" in roles else None


def check_whole(kind: str | None, tensors: Mapping[str, Tensor], *, where: str) -> str:
    """See that one update has all its tensors and no others, of numbers that are finite; gives the kind."""
    roles = set(tensors)
    if kind is None:
        raise AdapterError(
            f"{where}: it has {_listed(roles)} and no weights to go with it: the file is not whole"
        )
    whole = [set(needed) for needed in NEEDED[kind] if set(needed) <= roles]
    if not whole:
        wanted = " or ".join(_listed(needed) for needed in NEEDED[kind])
        raise AdapterError(
            f"{where}: it has {_listed(roles)}, where {wanted} belong together: the file is not whole"
        )
    extra = roles - min(whole, key=lambda needed: len(roles - needed)) - set(OPTIONAL[kind])
    if extra or {"magnitude", "dora_scale"} <= roles:
        raise AdapterError(f"{where}: {_listed(extra or roles)} beside each other mean no one update")
    for role, tensor in tensors.items():
        if not tensor.is_floating_point() or (tensor.itemsize == 1 and role != "alpha"):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise AdapterError(
                f"{where}: {role} is of dtype {dtype}, without a scale to read it by: save the LoRA as "
                "float32, float16 or bfloat16"
            )
        if role != "alpha" and not tensor.isfinite().all():
            raise AdapterError(
                f"{where}: {role} holds NaN or infinity: the training had failed, or the file is damaged"
            )
    return kind


def check_alpha(alpha: Tensor | None, *, matters: bool, where: str) -> float | None:
    """The value of alpha, where it says something; an AdapterError where its meaning cannot be known."""
    if alpha is None or not matters:
        return None
    if alpha.numel() != 1:
        raise AdapterError(f"{where}: alpha is one number, and this one has the shape {list(alpha.shape)}")
    value = float(alpha)
    if not math.isfinite(value):
        raise AdapterError(f"{where}: alpha is {value}: the file is damaged, or its training had failed")
    if value == 0:
        raise AdapterError(
            f"{where}: alpha is 0, which ComfyUI reads as no effect and sd-scripts as alpha = rank: set it "
            "to the rank, or to what was meant"
        )
    return value


def fitted(update: Update, weight: Shape, bias: Shape | None, *, third: str, where: str) -> Update:
    """Place an update on its module's rows, or refuse it.

    Args:
        update: whole; `rows` is not yet known.
        weight: shape of the module's weight.
        bias: of its bias; None where it has none.
        third: "q", "k", "v" or "".
        where: the file and the module, for messages.

    Raises:
        AdapterError: a shape does not fit; the message has both.
    """
    first = "qkv".index(third) * (weight[0] // 3) if third else 0
    rows = (first, first + weight[0] // 3) if third else (0, weight[0])
    height, columns = rows[1] - rows[0], math.prod(weight[1:])
    _check_factors(update, where=where)
    if update.kind != "bias":
        shape = _product_shape(update)
        if shape != (height, columns):
            raise AdapterError(
                f"{where}: its update is {shape[0]} x {shape[1]} and the layer's weight "
                f"{height} x {columns}{_whose(shape[1], columns)}"
            )
    for role in ("bias", "up_bias"):
        tensor = update.tensors.get(role)
        if tensor is not None and (bias is None or tuple(tensor.shape) != (height,)):
            has = "has no bias" if bias is None else f"has a bias of {height}"
            raise AdapterError(f"{where}: {role} is of shape {list(tensor.shape)} and the layer {has}")
    axis = _axis(update, height, columns, where=where)
    if update.swap and height % 2:
        raise AdapterError(f"{where}: {height} rows have no two halves to exchange")
    return Update(**{**update.__dict__, "rows": rows, "axis": axis})


def _check_factors(update: Update, *, where: str) -> None:
    """See that the factors of an update can be multiplied."""
    shapes = {role: tuple(tensor.shape) for role, tensor in update.tensors.items()}
    pairs = [("up", "down")]
    pairs += [(f"{name}_a", f"{name}_b") for name in ("hada_w1", "hada_w2", "lokr_w1", "lokr_w2")]
    for first, second in pairs:
        if first not in shapes or second not in shapes:
            continue
        core = {"hada_w1": "hada_t1", "hada_w2": "hada_t2", "lokr_w2": "lokr_t2"}.get(first[:-2], "")
        inner = shapes[first][0] if core in shapes else math.prod(shapes[first][1:])
        rank = shapes[second][0] if shapes[second] else 0
        cored = core not in shapes or shapes[core][:2] == (rank, rank)
        if not rank or inner != rank or not cored or min(len(shapes[first]), len(shapes[second])) < 2:
            raise AdapterError(
                f"{where}: {first} {list(shapes[first])} and {second} {list(shapes[second])} do not share a "
                "rank: the file is damaged, or its matrices are transposed"
            )


def _product_shape(update: Update) -> Shape:
    """The shape of what the factors make, worked out on the meta device."""
    from .value import matrix

    empty = {role: torch.empty(tensor.shape, device="meta") for role, tensor in update.tensors.items()}
    try:
        product = matrix(update.kind, empty, torch.float32)
    except RuntimeError:
        return (0, 0)
    return (0, 0) if product is None else tuple(product.shape)


def _axis(update: Update, height: int, columns: int, *, where: str) -> int | None:
    """Along which axis a DoRA's magnitude lies."""
    if "magnitude" in update.tensors:
        shape, axes = tuple(update.tensors["magnitude"].shape), {0: ((height,), (height, 1))}
    elif "dora_scale" in update.tensors:
        shape = tuple(update.tensors["dora_scale"].shape)
        shape = shape[:2] if len(shape) > 2 and set(shape[2:]) == {1} else shape
        axes = {0: ((height,), (height, 1)), 1: ((columns,), (1, columns))}
    else:
        return None
    fitting = [axis for axis, shapes in axes.items() if shape in shapes]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise AdapterError(
            f"{where}: dora_scale has the shape {list(shape)} on a square layer, which does not tell rows "
            "from columns: save it as [n, 1] (one a row) or [1, n]"
        )
    raise AdapterError(f"{where}: the magnitude of shape {list(shape)} fits no axis of {height} x {columns}")


def _whose(found: int, columns: int) -> str:
    """Name the models behind two widths, where both are known or the difference tells."""
    if found == columns or found not in WIDTHS:
        return ""
    ours = f", this model is {WIDTHS[columns]}" if columns in WIDTHS else ""
    return f": it was made for a width of {found} ({WIDTHS[found]}){ours}"


def _listed(roles: Sequence[str] | set[str]) -> str:
    """Names in a row."""
    return ", ".join(sorted(roles)) or "nothing"
